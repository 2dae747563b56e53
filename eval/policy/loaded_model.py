"""Trained weights with their tokenizers and settings: of a run's checkpoint, or exported ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.config import DataConfig
from data.errors import InputError
from data.json_record import JsonRecord
from data.tokens.action import DEFAULT_RANGES, ActionRanges
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from eval.config import ExportedConfig
from pretrain.checkpoint.weights import load_weights
from pretrain.convert.source import CONFIG, open_weights_folder
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer
from pretrain.run_layout import RunLayout
from pretrain.settings import from_mapping, read_yaml

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class LoadedModel:
    """Weights and everything needed to use them.

    Attributes:
        data: History, chunk and camera that it was trained with.
        network: The transformer in evaluation mode, fp32.
        text: Its text tokenizer.
        image: Its image tokenizer.
        action_ranges: Ranges by which the actions of its training data became tokens.
    """

    data: DataConfig
    network: Transformer
    text: TextTokenizer
    image: ImageTokenizer
    action_ranges: ActionRanges


def load_model(path: Path, exported: ExportedConfig | None = None, device: str | None = None) -> LoadedModel:
    """Load a folder of weights of either kind.

    Args:
        path: A run's checkpoint `runs/<name>/checkpoints/step_...`, or a folder with `config.json` and
            safetensors files, as `worldvla convert export` and transformers write it.
        exported: Settings that a folder of the second kind does not contain.
        device: Device it computes on; None takes a GPU if there is one.

    Raises:
        InputError: Neither kind, settings or a tokenizer are missing, action ranges are broken, or the
            weights do not fit their settings.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if (path / CONFIG).is_file():
        return _load_exported(path, exported or ExportedConfig(), device)
    return _load_checkpoint(path, device)


def _load_checkpoint(checkpoint: Path, device: str) -> LoadedModel:
    run = RunLayout.of_checkpoint(checkpoint)
    if not (checkpoint.is_dir() and run.config.is_file()):
        raise InputError(
            f"checkpoint={checkpoint}: no checkpoint of a run there (a folder, config.yaml two folders "
            "above it); expected runs/<name>/checkpoints/step_... or a folder of exported weights "
            f"({CONFIG} in it)"
        )
    settings = {"data": {}, "model": {}} | read_yaml(run.config)
    data: DataConfig = from_mapping(f"{run.config} data", DataConfig, settings["data"])
    if len(data.cameras) > 1 or data.state or data.predicted_frames > 1:
        raise InputError(
            f"{run.config}: data.cameras={data.cameras}, data.state={data.state}, data.predicted_frames="
            f"{data.predicted_frames}; evaluation acts and imagines with one camera, no state and one frame"
        )
    model = from_mapping(f"{run.config} model", ModelConfig, settings["model"])
    text = TextTokenizer.load(_only_file(run.tokenizers, "json", "text"))
    image = ImageTokenizer.load(_only_file(run.tokenizers, "safetensors", "image"), device=device)
    ranges = _read_ranges(run.action_ranges, "copy it there from the training run")
    network = _network(model, checkpoint, load_weights(checkpoint))
    return LoadedModel(data, network.to(device), text, image, ranges)


def _load_exported(folder: Path, settings: ExportedConfig, device: str) -> LoadedModel:
    if settings.image_tokenizer is None:
        raise InputError(
            f"checkpoint={folder}: exported weights have no image tokenizer beside them; add "
            "exported.image_tokenizer=FILE (runs/<name>/tokenizers/*.safetensors, or what `worldvla convert "
            "import` made of vqgan.ckpt)"
        )
    text = Path(settings.text_tokenizer or folder / _TOKENIZER)
    if not text.is_file():
        raise InputError(
            f"checkpoint={folder}: no text tokenizer at {text}; add exported.text_tokenizer=FILE "
            "(runs/<name>/tokenizers/*.json, or Chameleon's tokenizer.json)"
        )
    image = ImageTokenizer.load(settings.image_tokenizer, device=device, pixels=settings.pixels)
    ranges = DEFAULT_RANGES
    if settings.action_ranges:
        ranges = _read_ranges(Path(settings.action_ranges), "correct exported.action_ranges")
    source = open_weights_folder(folder)
    weights = {name: stored.tensor().float() for name, stored in source.tensors.items()}
    data = DataConfig(history=settings.history, chunk=settings.chunk, cameras=[settings.camera])
    network = _network(source.model, folder, weights).to(device)
    return LoadedModel(data, network, TextTokenizer.load(text), image, ranges)


def _read_ranges(path: Path, remedy: str) -> ActionRanges:
    """Read action ranges; with any others the same tokens would mean other motions."""
    try:
        record = JsonRecord.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: the action ranges cannot be read ({error.strerror}); {remedy}") from error
    return ActionRanges(record.numbers("minimum"), record.numbers("maximum"))


def _only_file(folder: Path, suffix: str, kind: str) -> Path:
    """The only file with a suffix in a folder."""
    files = sorted(folder.glob(f"*.{suffix}"))
    if len(files) != 1:
        raise InputError(
            f"{folder}: found {len(files)} files *.{suffix}, expected the run's {kind} tokenizer; "
            "copy it there from the training run"
        )
    return files[0]


def _network(config: ModelConfig, checkpoint: Path, weights: dict[str, Tensor]) -> Transformer:
    """The plain transformer with a checkpoint's weights."""
    with torch.device("meta"):
        network = Transformer(config)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected | shapes if expected.get(name) != shapes.get(name))
    if wrong:
        raise InputError(
            f"{checkpoint}: {len(wrong)} tensors do not fit the model of its settings, first "
            f"{wrong[0]}: found {shapes.get(wrong[0])}, expected {expected.get(wrong[0])}"
        )
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
