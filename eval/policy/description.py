"""What a checkpoint or exported weights are used with, verified; no weight is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from data.errors import InputError
from data.json_record import JsonRecord
from data.tokens.action import DEFAULT_RANGES
from data.tokens.text import TextTokenizer
from eval.config import ExportedConfig
from pretrain.checkpoint.policy_files import (
    PolicyDescription,
    describe_checkpoint,
    file_checksum,
    image_pixels,
    read_action_ranges,
)
from pretrain.convert.source import CONFIG
from pretrain.policy_settings import POLICY_FILE, PolicySettings
from pretrain.run_layout import RunLayout

_TOKENIZER = "tokenizer.json"
_CAMERAS = (AGENT_CAMERA, WRIST_CAMERA)
_HISTORY, _CHUNK = 2, 5  # without `policy.json`: WorldVLA's
_ASSUMED = {"camera": AGENT_CAMERA, "history": _HISTORY, "chunk": _CHUNK}


def describe(path: Path, exported: ExportedConfig | None = None) -> PolicyDescription:
    """Describe a folder of weights of either kind; see `eval.policy.loaded_model.load_model`.

    Raises:
        InputError: Neither kind, exported weights where `exported` is None, a file is missing or broken,
            tokenizers or action ranges are not those that the weights were trained with, or evaluation does
            not support such a model.
    """
    if (path / CONFIG).is_file():
        if exported is None:
            raise InputError(
                f"checkpoint={path}: exported weights ({CONFIG} in it), which this command cannot use; "
                "give a checkpoint of the run, runs/<name>/checkpoints/step_..."
            )
        description = _describe_export(path, exported)
    elif path.is_dir() and RunLayout.of_checkpoint(path).config.is_file():
        description = describe_checkpoint(path)
    else:
        raise InputError(
            f"checkpoint={path}: no checkpoint of a run there (a folder, config.yaml two folders "
            "above it); expected runs/<name>/checkpoints/step_... or a folder of exported weights "
            f"({CONFIG} in it)"
        )
    _check_supported(path, description.settings)
    return description


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
    stored = _read_policy_file(folder / POLICY_FILE)
    base = stored or PolicySettings(
        cameras=(AGENT_CAMERA,),
        history=_HISTORY,
        chunk=_CHUNK,
        predicted_frames=1,
        state_ranges=None,
        pixels=given.pixels or image_pixels(image),
        action_ranges=DEFAULT_RANGES,
        image_tokenizer_sha256="",
        text_tokenizer_sha256="",
    )
    found = replace(
        base,
        cameras=base.cameras if given.camera is None else (given.camera,),
        history=base.history if given.history is None else given.history,
        chunk=base.chunk if given.chunk is None else given.chunk,
        pixels=base.pixels if given.pixels is None else given.pixels,
        image_tokenizer_sha256=file_checksum(image),
        text_tokenizer_sha256=TextTokenizer.load(text).sha256,
    )
    if given.action_ranges is not None:
        ranges = read_action_ranges(Path(given.action_ranges), "correct exported.action_ranges")
        found = replace(found, action_ranges=ranges)
    if stored is None:
        return PolicyDescription(found, image, text, _assumptions(folder, given))
    names = {
        "image_tokenizer_sha256": f"exported.image_tokenizer={image}",
        "text_tokenizer_sha256": f"exported.text_tokenizer={text}",
        "action_ranges": f"exported.action_ranges={given.action_ranges}",
    }
    stored.check_tokens(found, names, "give the file of the training run (runs/<name>/)")
    return PolicyDescription(found, image, text, _changes(stored, found))


def _read_policy_file(path: Path) -> PolicySettings | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); export the checkpoint again") from error
    return PolicySettings.of_record(JsonRecord.parse(content, str(path)))


def _assumptions(folder: Path, given: ExportedConfig) -> tuple[str, ...]:
    """A note on the settings that nothing says."""
    assumed = [f"{name} {value}" for name, value in _ASSUMED.items() if getattr(given, name) is None]
    assumed += ["WorldVLA's action ranges"] if given.action_ranges is None else []
    if not assumed:
        return ()
    return (
        f"{folder} has no {POLICY_FILE}: {', '.join(assumed)} assumed, exported.* sets others; exporting the "
        "checkpoint again writes the file",
    )


def _changes(stored: PolicySettings, found: PolicySettings) -> tuple[str, ...]:
    """A note on every setting of the command that is not that of the training."""
    return tuple(
        f"{name} is {getattr(found, name)}, the weights were trained with {getattr(stored, name)}"
        for name in ("cameras", "history", "chunk", "pixels")
        if getattr(found, name) != getattr(stored, name)
    )


def _check_supported(path: Path, settings: PolicySettings) -> None:
    """Refuse a model that evaluation cannot use."""
    for camera in settings.cameras:
        if camera not in _CAMERAS:
            raise InputError(f"checkpoint={path}: camera {camera!r}, expected one of {', '.join(_CAMERAS)}")
