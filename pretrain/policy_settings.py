"""What using a model takes beside its weights: how its frames, texts, states and actions became tokens.

A training stores it in the metadata of every checkpoint, `worldvla convert export` beside exported weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from data.config import DataConfig
from data.contracts import Decoder
from data.errors import InputError
from data.json_record import JsonRecord
from data.tokens.action import ActionRanges

DECODERS: tuple[Decoder, ...] = get_args(Decoder)
POLICY_FILE = "policy.json"  # beside exported weights
POLICY_METADATA = "policy"  # key in the metadata of a checkpoint
_SHOWN = 12  # digits of a checksum in messages


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """How a model's inputs and outputs were tokenised in its training.

    Attributes:
        cameras: Cameras of the frames, in their order.
        history: M, number of frames in an observation.
        chunk: K, actions in a chunk.
        predicted_frames: P, frames that a world sample predicts.
        state_ranges: Minimum and maximum of each number of a state; None: it was trained without states.
        pixels: Side of the frames.
        action_ranges: Ranges over which actions are quantised.
        image_tokenizer_sha256: Checksum of the image tokenizer's file.
        text_tokenizer_sha256: Checksum of the text tokenizer's file.
        decoders: How it was trained to decide on actions; empty: without action samples.
    """

    cameras: tuple[str, ...]
    history: int
    chunk: int
    predicted_frames: int
    state_ranges: tuple[tuple[float, ...], tuple[float, ...]] | None
    pixels: int
    action_ranges: ActionRanges
    image_tokenizer_sha256: str
    text_tokenizer_sha256: str
    decoders: tuple[Decoder, ...] = ("discrete",)

    @classmethod
    def of(
        cls,
        config: DataConfig,
        pixels: int,
        action_ranges: ActionRanges,
        image_tokenizer_sha256: str,
        text_tokenizer_sha256: str,
        decoders: tuple[Decoder, ...] = ("discrete",),
    ) -> PolicySettings:
        """The settings of a training on this data; `decoders` as of `pretrain.config.trained_decoders`."""
        ranges = (tuple(config.state_ranges.minimum), tuple(config.state_ranges.maximum))
        return cls(
            cameras=tuple(config.cameras),
            history=config.history,
            chunk=config.chunk,
            predicted_frames=config.predicted_frames,
            state_ranges=ranges if config.state else None,
            pixels=pixels,
            action_ranges=action_ranges,
            image_tokenizer_sha256=image_tokenizer_sha256,
            text_tokenizer_sha256=text_tokenizer_sha256,
            decoders=decoders,
        )

    @classmethod
    def of_metadata(cls, where: str, metadata: Mapping[str, Any]) -> PolicySettings | None:
        """The settings in a checkpoint's metadata; None: an earlier version wrote it, or it was imported.

        Raises:
            InputError: They are malformed.
        """
        values = metadata.get(POLICY_METADATA)
        if values is None:
            return None
        if not isinstance(values, dict):
            raise InputError(f"{where}: {POLICY_METADATA} is no JSON object; take another checkpoint")
        return cls.of_record(JsonRecord(values, f"{where}: {POLICY_METADATA}"))

    @classmethod
    def of_record(cls, record: JsonRecord) -> PolicySettings:
        """The settings in a JSON object, as `to_json` makes it; earlier versions wrote no decoders.

        Raises:
            InputError: A value is missing or malformed.
        """
        actions = record.record("action_ranges")
        states = record.record("state_ranges") if "state_ranges" in record else None
        return cls(
            cameras=tuple(record.texts("cameras")),
            history=record.integer("history", 1),
            chunk=record.integer("chunk", 1),
            predicted_frames=record.integer("predicted_frames", 1),
            state_ranges=None if states is None else (states.numbers("minimum"), states.numbers("maximum")),
            pixels=record.integer("pixels", 1),
            action_ranges=ActionRanges(actions.numbers("minimum"), actions.numbers("maximum")),
            image_tokenizer_sha256=record.text("image_tokenizer_sha256"),
            text_tokenizer_sha256=record.text("text_tokenizer_sha256"),
            decoders=tuple(cast(list[Decoder], record.texts("decoders", DECODERS)))
            if "decoders" in record
            else ("discrete",),
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; without `state_ranges` where there is no state."""
        states = {}
        if self.state_ranges is not None:
            states = {"state_ranges": _ranges(*self.state_ranges)}
        return {
            "cameras": list(self.cameras),
            "history": self.history,
            "chunk": self.chunk,
            "predicted_frames": self.predicted_frames,
            **states,
            "pixels": self.pixels,
            "action_ranges": _ranges(self.action_ranges.minimum, self.action_ranges.maximum),
            "image_tokenizer_sha256": self.image_tokenizer_sha256,
            "text_tokenizer_sha256": self.text_tokenizer_sha256,
            "decoders": list(self.decoders),
        }

    def check_tokens(self, found: PolicySettings, names: Mapping[str, str], remedy: str) -> None:
        """Compare tokenizers and action ranges with those that were found; others mean other tokens.

        Args:
            found: The settings of the files that would be used.
            names: What messages call the image tokenizer, the text tokenizer and the action ranges, by the
                names of the attributes.
            remedy: What to do, for the message.

        Raises:
            InputError: One differs.
        """
        for key, name in names.items():
            expected, actual = getattr(self, key), getattr(found, key)
            if expected == actual:
                continue
            if key == "action_ranges":
                what = f"{_ranges_text(actual)}, the weights were trained with {_ranges_text(expected)}"
            else:
                what = f"has checksum {actual[:_SHOWN]}, the weights were trained with {expected[:_SHOWN]}"
            raise InputError(f"{name}: {what}; {remedy}")


def _ranges(minimum: tuple[float, ...], maximum: tuple[float, ...]) -> dict[str, list[float]]:
    return {"minimum": list(minimum), "maximum": list(maximum)}


def _ranges_text(ranges: ActionRanges) -> str:
    pairs = zip(ranges.minimum, ranges.maximum, strict=True)
    return f"[{', '.join(f'{low:g} to {high:g}' for low, high in pairs)}]"
