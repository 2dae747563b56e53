"""What a checkpoint or exported weights are used with, verified; no weight is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.config import DataConfig
from data.contracts import AGENT_CAMERA, Decoder, WeightsChoice
from data.errors import InputError
from data.json_record import JsonRecord
from data.tokens.state import check_state_ranges
from data.tokens.text import TextTokenizer
from eval.config import ExportedConfig
from eval.simulator.interface import CAMERAS
from pretrain.checkpoint.policy_files import (
    PolicyDescription,
    decoders_without_record,
    describe_checkpoint,
    file_checksum,
    image_pixels,
)
from pretrain.convert.source import CONFIG, open_weights_folder
from pretrain.model.config import ActionHeadConfig
from pretrain.policy_settings import POLICY_FILE, PolicySettings
from pretrain.run_layout import RunLayout
from pretrain.sources import libero_source, read_action_ranges, with_action_ranges

_TOKENIZER = "tokenizer.json"
_HISTORY, _CHUNK = 2, 5  # without `policy.json`: WorldVLA's


def describe(
    path: Path, exported: ExportedConfig | None = None, weights: WeightsChoice = "auto"
) -> PolicyDescription:
    """Describe a folder of weights of either kind; see `eval.policy.loaded_model.load_model`.

    Raises:
        InputError: Neither kind, exported weights where `exported` is None, a file is missing or broken,
            tokenizers or action ranges are not those that the weights were trained with, no simulator has
            what the policy observes, or there are no weights of the chosen kind.
    """
    if (path / CONFIG).is_file():
        if exported is None:
            raise InputError(
                f"checkpoint={path}: exported weights ({CONFIG} in it), which this command cannot use; "
                "give a checkpoint of the run, runs/<name>/checkpoints/step_..."
            )
        if weights != "auto":
            raise InputError(
                f"weights={weights}: {path} is exported weights, which are of one kind; leave it out"
            )
        description = _describe_export(path, exported)
    elif path.is_dir() and RunLayout.of_checkpoint(path).config.is_file():
        description = describe_checkpoint(path, weights)
    else:
        raise InputError(
            f"checkpoint={path}: no checkpoint of a run there (a folder, config.yaml two folders "
            "above it); expected runs/<name>/checkpoints/step_... or a folder of exported weights "
            f"({CONFIG} in it)"
        )
    _check_observed(path, description.settings)
    return description


def chosen_decoder(
    path: Path, decoder: Decoder | None, settings: PolicySettings, head: ActionHeadConfig | None
) -> Decoder:
    """The decoder that a setting means for some weights: null takes their action head if they have one.

    Args:
        path: Folder of the weights, for errors.
        decoder: The setting.
        settings: Of their training, with all its sources.
        head: Their action head; None: they have none.

    Raises:
        InputError: They do not have this decoder, or their action head predicts other than the longest chunk
            or the widest action.
    """
    found = settings.decoders
    if decoder is None:
        decoder = "continuous" if "continuous" in found else "discrete"
    if not found:
        raise InputError(
            f"checkpoint={path}: trained without action samples (data.mixture.action=0), so it knows no "
            "actions; take a checkpoint of a training with action samples"
        )
    if decoder not in found:
        raise InputError(
            f"decoder={decoder}: {path} was trained for {' and '.join(found)} decoding of actions "
            "only; give another decoder, or leave it out"
        )
    if decoder == "continuous" and head is None:
        raise InputError(
            f"decoder={decoder}: {path} was trained with an action head, but its network has none; take "
            "weights with their head, or give decoder=discrete"
        )
    if decoder == "continuous" and head is not None:
        _check_head(path, settings, head)
    return decoder


def _check_head(path: Path, settings: PolicySettings, head: ActionHeadConfig) -> None:
    chunk = max(source.chunk for source in settings.sources)
    if head.time_horizon != chunk:
        raise InputError(
            f"checkpoint={path}: its action head predicts {head.time_horizon} actions, the chunk has "
            f"{chunk}; leave exported.chunk out, or give decoder=discrete"
        )
    numbers = max(source.embodiment.action_dim for source in settings.sources)
    if head.action_dim != numbers:
        raise InputError(
            f"checkpoint={path}: its action head predicts actions of {head.action_dim} numbers, those of its "
            f"data have {numbers}; take weights with their {POLICY_FILE}, or give decoder=discrete"
        )


def _describe_export(folder: Path, given: ExportedConfig) -> PolicyDescription:
    if given.image_tokenizer is None:
        raise InputError(
            f"checkpoint={folder}: exported weights have no image tokenizer beside them; add "
            "exported.image_tokenizer=FILE (runs/<name>/tokenizers/*.safetensors, or what `worldvla convert "
            "import` made of vqgan.ckpt)"
        )
    for name in ("pixels", "history", "chunk"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise InputError(f"exported.{name}={value}: expected at least 1")
    image, text = Path(given.image_tokenizer), Path(given.text_tokenizer or folder / _TOKENIZER)
    if not text.is_file():
        raise InputError(
            f"checkpoint={folder}: no text tokenizer at {text}; add exported.text_tokenizer=FILE "
            "(runs/<name>/tokenizers/*.json, or Chameleon's tokenizer.json)"
        )
    head = open_weights_folder(folder).model.action_head
    stored = _read_policy_file(folder / POLICY_FILE)
    assumed = _assumed_settings(given.pixels or image_pixels(image), head) if stored is None else stored
    found = _given_settings(given, assumed, image, text)
    if stored is None:
        return PolicyDescription(found, image, text, _assumptions(folder, given, assumed), action_head=head)
    names = {
        "image_tokenizer_sha256": f"exported.image_tokenizer={image}",
        "text_tokenizer_sha256": f"exported.text_tokenizer={text}",
        "action_ranges": f"exported.action_ranges={given.action_ranges}",
    }
    stored.check_tokens(found, names, "give the file of the training run (runs/<name>/)")
    if found.cameras != tuple(camera for camera in stored.cameras if camera in found.cameras):
        raise InputError(
            f"exported.cameras={list(found.cameras)}: the weights were trained with "
            f"{', '.join(stored.cameras)}{' in this order' * (len(stored.cameras) > 1)}; leave it out"
        )
    return PolicyDescription(found, image, text, _changes(stored, found), action_head=head)


def _assumed_settings(pixels: int, head: ActionHeadConfig | None) -> PolicySettings:
    """Those of weights without `policy.json`."""
    chunk = _CHUNK if head is None else head.time_horizon
    return PolicySettings(
        cameras=(AGENT_CAMERA,),
        history=_HISTORY,
        predicted_frames=1,
        pixels=pixels,
        sources=(libero_source(DataConfig(chunk=chunk)),),
        image_tokenizer_sha256="",
        text_tokenizer_sha256="",
        decoders=decoders_without_record(head),
    )


def _given_settings(given: ExportedConfig, base: PolicySettings, image: Path, text: Path) -> PolicySettings:
    """What the command says, and `base` where it says nothing."""
    found = replace(
        base,
        cameras=base.cameras if given.cameras is None else tuple(given.cameras),
        history=base.history if given.history is None else given.history,
        pixels=base.pixels if given.pixels is None else given.pixels,
        image_tokenizer_sha256=file_checksum(image),
        text_tokenizer_sha256=TextTokenizer.load(text).sha256,
    )
    sources = base.sources
    if given.chunk is not None:
        sources = tuple(replace(source, chunk=given.chunk) for source in sources)
    if given.action_ranges is not None:
        path = Path(given.action_ranges)
        ranges = read_action_ranges(path, "correct exported.action_ranges")
        sources = with_action_ranges(sources, ranges, path)
    return replace(found, sources=sources)


def _read_policy_file(path: Path) -> PolicySettings | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); export the checkpoint again") from error
    return PolicySettings.of_record(JsonRecord.parse(content, str(path)))


def _assumptions(folder: Path, given: ExportedConfig, assumed: PolicySettings) -> tuple[str, ...]:
    """A note on the settings that nothing says."""
    values = {
        "cameras": f"cameras {', '.join(assumed.cameras)}",
        "history": f"history {assumed.history}",
        "chunk": f"chunk {assumed.source.chunk}",
        "action_ranges": "WorldVLA's action ranges",
    }
    texts = [text for name, text in values.items() if getattr(given, name) is None]
    texts += ["both decoders"] if len(assumed.decoders) > 1 else []
    others = f"{', '.join(texts)} and no state" if texts else "no state"
    return (
        f"{folder} has no {POLICY_FILE}: {others} assumed, exported.* sets others; exporting the checkpoint "
        "again writes the file",
    )


def _changes(stored: PolicySettings, found: PolicySettings) -> tuple[str, ...]:
    """A note on every setting of the command that is not that of the training."""
    was, now = _values(stored), _values(found)
    return tuple(
        f"{name} is {now[name]}, the weights were trained with {was[name]}"
        for name in was
        if now[name] != was[name]
    )


def _values(settings: PolicySettings) -> dict[str, object]:
    """What a command may set, by name; the chunks of several data sets in words."""
    chunks = dict.fromkeys(source.chunk for source in settings.sources)
    return {
        "cameras": settings.cameras,
        "history": settings.history,
        "chunk": ", ".join(map(str, chunks)),
        "pixels": settings.pixels,
    }


def _check_observed(path: Path, settings: PolicySettings) -> None:
    """Refuse cameras that no simulator has, and states that cannot become tokens."""
    cameras = settings.cameras
    if not cameras or len(set(cameras)) < len(cameras) or not set(cameras) <= set(CAMERAS):
        raise InputError(
            f"checkpoint={path}: cameras {list(cameras)}, expected some of {', '.join(CAMERAS)}, each once"
        )
    for source in settings.sources:
        if (ranges := source.state_ranges) is None:
            continue
        try:
            check_state_ranges(ranges.minimum, ranges.maximum, source.embodiment.state_dim)
        except InputError as error:
            raise InputError(f"checkpoint={path}: {error}") from error
