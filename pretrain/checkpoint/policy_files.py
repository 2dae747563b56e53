"""Tokenizers and action ranges in a run's folder, compared with what its checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.contracts import Decoder, WeightsChoice
from data.errors import InputError
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import Manifest, StoredFile
from pretrain.checkpoint.weights import chosen_state, describe_state
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.policy_settings import DECODERS, PolicySettings
from pretrain.run_layout import RunLayout
from pretrain.settings import from_mapping, read_yaml
from pretrain.sources import libero_source, read_action_ranges, with_action_ranges

_REMEDY = "copy it there from the training run"
_UNVERIFIED = (
    "the checkpoint, of an earlier version, does not say which tokenizers and action ranges it was trained "
    "with: those of the run's folder are used unverified"
)


@dataclass(frozen=True, slots=True)
class PolicyDescription:
    """What a model is used with.

    Attributes:
        settings: How its inputs and outputs are tokenised.
        image_tokenizer: File of its image tokenizer.
        text_tokenizer: File of its text tokenizer.
        notes: What could not be verified, and what was assumed; empty: nothing.
        dataset: Fingerprint of the data that it was trained on; None: not known.
        action_head: Its action head; None: it has none.
        weights: Which weights of a checkpoint are used, as `describe_state`; None: of exported ones.
    """

    settings: PolicySettings
    image_tokenizer: Path
    text_tokenizer: Path
    notes: tuple[str, ...] = ()
    dataset: str | None = None
    action_head: ActionHeadConfig | None = None
    weights: str | None = None


def describe_checkpoint(checkpoint: Path, weights: WeightsChoice = "auto") -> PolicyDescription:
    """Describe a checkpoint of a run, by its manifest and the files in the run's folder; no weight is read.

    Args:
        checkpoint: Its folder.
        weights: Which of its weights are used.

    Raises:
        InputError: No committed checkpoint there, one without such weights, a file of the run is missing, or
            it is not what the checkpoint was trained with.
    """
    run = RunLayout.of_checkpoint(checkpoint)
    text = only_file(run.tokenizers, "json", "text")
    image = only_file(run.tokenizers, "safetensors", "image")
    ranges = read_action_ranges(run.action_ranges, _REMEDY)
    store = open_checkpoint(checkpoint)
    manifest = Manifest.read(store)
    metadata, used = manifest.metadata, describe_state(manifest, chosen_state(store.url, manifest, weights))
    stored, dataset = PolicySettings.of_metadata(store.url, metadata), _dataset(metadata)
    data, head = run_data(run), run_model(run).action_head
    checksums = (file_checksum(image), TextTokenizer.load(text).sha256)
    if stored is None:
        sources = with_action_ranges((libero_source(data),), ranges, run.action_ranges)
        found = PolicySettings.of(
            data, image_pixels(image), sources, *checksums, decoders_without_record(head)
        )
        return PolicyDescription(found, image, text, (_UNVERIFIED,), dataset, head, used)
    sources = with_action_ranges(stored.sources, ranges, run.action_ranges)
    found = PolicySettings.of(data, stored.pixels, sources, *checksums)
    names = {
        "image_tokenizer_sha256": str(image),
        "text_tokenizer_sha256": str(text),
        "action_ranges": str(run.action_ranges),
    }
    stored.check_tokens(found, names, _REMEDY)
    return PolicyDescription(stored, image, text, dataset=dataset, action_head=head, weights=used)


def has_average(checkpoint: Path) -> bool:
    """Whether a checkpoint has an average beside its trained weights.

    Raises:
        InputError: No committed checkpoint there.
    """
    return Manifest.read(open_checkpoint(checkpoint)).average is not None


def decoders_without_record(head: ActionHeadConfig | None) -> tuple[Decoder, ...]:
    """How weights of which no record says it decide on actions: by their head too, where they have one."""
    return ("discrete",) if head is None else DECODERS


def _dataset(metadata: Mapping[str, Any]) -> str | None:
    fingerprint = metadata.get("dataset")
    return fingerprint if isinstance(fingerprint, str) else None


def policy_of_export(checkpoint: Path, manifest: Manifest) -> tuple[PolicySettings | None, str]:
    """What an export of a checkpoint should say of its use, and a note (empty: none).

    Returns:
        None without settings: of imported weights, and of an earlier version's checkpoint whose run lacks
        its tokenizers or action ranges.

    Raises:
        InputError: The run's tokenizers or action ranges are not those that the checkpoint was trained with.
    """
    run = RunLayout.of_checkpoint(checkpoint)
    if run.config.is_file() and run.action_ranges.is_file() and run.tokenizers.is_dir():
        description = describe_checkpoint(checkpoint)
        return description.settings, "; ".join(description.notes)
    stored = PolicySettings.of_metadata(str(checkpoint), manifest.metadata)
    if stored is not None or manifest.only_weights:
        return stored, ""
    return None, (
        "the checkpoint, of an earlier version, does not say how it is used, and its run's folder has no "
        "tokenizers or action ranges: an evaluation needs exported.cameras, history, chunk and action_ranges"
    )


def run_data(run: RunLayout) -> DataConfig:
    """The data settings in a run's `config.yaml`.

    Raises:
        InputError: It cannot be read.
    """
    settings = {"data": {}} | read_yaml(run.config)
    return from_mapping(f"{run.config} data", DataConfig, settings["data"])


def run_model(run: RunLayout) -> ModelConfig:
    """The network's settings in a run's `config.yaml`.

    Raises:
        InputError: It cannot be read.
    """
    settings = {"model": {}} | read_yaml(run.config)
    return from_mapping(f"{run.config} model", ModelConfig, settings["model"])


def only_file(folder: Path, suffix: str, kind: str) -> Path:
    """The only file with a suffix in a run's folder of tokenizers.

    Raises:
        InputError: There is none, or several.
    """
    files = sorted(folder.glob(f"*.{suffix}"))
    if len(files) != 1:
        raise InputError(
            f"{folder}: found {len(files)} files *.{suffix}, expected the run's {kind} tokenizer; {_REMEDY}"
        )
    return files[0]


def file_checksum(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return StoredFile.of_path(path).sha256
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it readable") from error


def image_pixels(path: Path) -> int:
    """Side of the frames that an image tokenizer's file is for.

    Raises:
        InputError: It is no image tokenizer.
    """
    return ImageTokenizer.load(path).pixels
