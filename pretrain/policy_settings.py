"""What using a model takes beside its weights: how its frames, texts, states and actions became tokens.

A training stores it in the metadata of every checkpoint, `worldvla convert export` beside exported weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from data.config import DataConfig
from data.contracts import DEFAULT_EMBODIMENT, Decoder
from data.errors import InputError
from data.json_record import JsonRecord
from data.stream.source_format import SourceFormat
from data.tokens.action import ActionRanges
from pretrain.sources import (
    given_state_ranges,
    is_plain,
    listed,
    name_of,
    of_width,
    read_ranges,
    read_source,
    source_json,
)

DECODERS: tuple[Decoder, ...] = get_args(Decoder)
POLICY_FILE = "policy.json"  # beside exported weights
POLICY_METADATA = "policy"  # key in the metadata of a checkpoint
_SHOWN = 12  # digits of a checksum in messages
_SOURCES = "sources"


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """How a model's inputs and outputs were tokenised in its training.

    Attributes:
        cameras: Cameras of the frames, in their order.
        history: M, number of frames in an observation.
        predicted_frames: P, frames that a world sample predicts.
        pixels: Side of the frames.
        sources: Embodiment, chunk and ranges of each data set; a policy acts as one of them (`acting_as`).
        image_tokenizer_sha256: Checksum of the image tokenizer's file.
        text_tokenizer_sha256: Checksum of the text tokenizer's file.
        decoders: How it was trained to decide on actions; empty: without action samples.
    """

    cameras: tuple[str, ...]
    history: int
    predicted_frames: int
    pixels: int
    sources: tuple[SourceFormat, ...]
    image_tokenizer_sha256: str
    text_tokenizer_sha256: str
    decoders: tuple[Decoder, ...] = ("discrete",)

    @classmethod
    def of(
        cls,
        config: DataConfig,
        pixels: int,
        sources: tuple[SourceFormat, ...],
        image_tokenizer_sha256: str,
        text_tokenizer_sha256: str,
        decoders: tuple[Decoder, ...] = ("discrete",),
    ) -> PolicySettings:
        """The settings of a training on this data; `decoders` as of `pretrain.config.trained_decoders`."""
        return cls(
            cameras=tuple(config.cameras),
            history=config.history,
            predicted_frames=config.predicted_frames,
            pixels=pixels,
            sources=sources,
            image_tokenizer_sha256=image_tokenizer_sha256,
            text_tokenizer_sha256=text_tokenizer_sha256,
            decoders=decoders,
        )

    @property
    def source(self) -> SourceFormat:
        """The source that a policy acts as, where it is the only one.

        Raises:
            ValueError: There are several; see `acting_as`.
        """
        if len(self.sources) != 1:
            raise ValueError(f"{len(self.sources)} sources, expected the one that the policy acts as")
        return self.sources[0]

    def acting_as(self, source: SourceFormat) -> PolicySettings:
        """The settings of a policy that acts as one of the sources."""
        return replace(self, sources=(source,))

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
        return cls(
            cameras=tuple(record.texts("cameras")),
            history=record.integer("history", 1),
            predicted_frames=record.integer("predicted_frames", 1),
            pixels=record.integer("pixels", 1),
            sources=_read_sources(record),
            image_tokenizer_sha256=record.text("image_tokenizer_sha256"),
            text_tokenizer_sha256=record.text("text_tokenizer_sha256"),
            decoders=tuple(cast(list[Decoder], record.texts("decoders", DECODERS)))
            if "decoders" in record
            else ("discrete",),
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object: of LIBERO's numbers alone as `acting_json`, else with a list of the sources."""
        if is_plain(self.sources):
            return self._json(self.source)
        return {
            "cameras": list(self.cameras),
            "history": self.history,
            "predicted_frames": self.predicted_frames,
            "pixels": self.pixels,
            _SOURCES: [source_json(source) for source in self.sources],
            **self._checksums_and_decoders(),
        }

    def acting_json(self, source: SourceFormat) -> dict[str, Any]:
        """As a JSON object for results: the settings of a policy that acts as one of the sources.

        It is named as `embodiment` unless it is the only one and of LIBERO's numbers.
        """
        named = {} if is_plain(self.sources) else {"embodiment": name_of(source)}
        return self._json(source) | named

    def _json(self, source: SourceFormat) -> dict[str, Any]:
        """Without `state_ranges` where there is no state."""
        states = {}
        if source.state_ranges is not None:
            states = {"state_ranges": _ranges(source.state_ranges.minimum, source.state_ranges.maximum)}
        return {
            "cameras": list(self.cameras),
            "history": self.history,
            "chunk": source.chunk,
            "predicted_frames": self.predicted_frames,
            **states,
            "pixels": self.pixels,
            "action_ranges": _ranges(source.action_ranges.minimum, source.action_ranges.maximum),
            **self._checksums_and_decoders(),
        }

    def _checksums_and_decoders(self) -> dict[str, Any]:
        names = ("image_tokenizer_sha256", "text_tokenizer_sha256")
        return {name: getattr(self, name) for name in names} | {"decoders": list(self.decoders)}

    def check_tokens(self, found: PolicySettings, names: Mapping[str, str], remedy: str) -> None:
        """Compare tokenizers and action ranges with those that were found; others mean other tokens.

        Args:
            found: The settings of the files that would be used, with the same sources.
            names: What messages call the image tokenizer, the text tokenizer and the action ranges, by the
                names of the attributes (`action_ranges`: of the sources).
            remedy: What to do, for the message.

        Raises:
            InputError: One differs.
        """
        for key, name in names.items():
            if key == "action_ranges":
                self._check_ranges(found, name, remedy)
                continue
            expected, actual = getattr(self, key), getattr(found, key)
            if expected != actual:
                what = f"has checksum {actual[:_SHOWN]}, the weights were trained with {expected[:_SHOWN]}"
                raise InputError(f"{name}: {what}; {remedy}")

    def _check_ranges(self, found: PolicySettings, name: str, remedy: str) -> None:
        for expected, actual in zip(self.sources, found.sources, strict=True):
            if expected.action_ranges != actual.action_ranges:
                of = f" of {name_of(expected)}" if len(self.sources) > 1 else ""
                raise InputError(
                    f"{name}:{of} {_ranges_text(actual.action_ranges)}, the weights were trained with "
                    f"{_ranges_text(expected.action_ranges)}; {remedy}"
                )


def _read_sources(record: JsonRecord) -> tuple[SourceFormat, ...]:
    if _SOURCES in record:
        where = POLICY_FILE
        sources = tuple(read_source(each, where) for each in record.records(_SOURCES))
        names = [source.name for source in sources]
        if not sources or len(set(names)) < len(names):
            raise InputError(
                f"{where}: {_SOURCES} are {listed(sources) or 'none'}, expected some, each name once; make "
                "the file again"
            )
        return sources
    return (
        SourceFormat(
            chunk=record.integer("chunk", 1),
            action_ranges=of_width(read_ranges(record), DEFAULT_EMBODIMENT, POLICY_FILE),
            state_ranges=given_state_ranges(record),
        ),
    )


def _ranges(minimum: tuple[float, ...], maximum: tuple[float, ...]) -> dict[str, list[float]]:
    return {"minimum": list(minimum), "maximum": list(maximum)}


def _ranges_text(ranges: ActionRanges) -> str:
    pairs = zip(ranges.minimum, ranges.maximum, strict=True)
    return f"[{', '.join(f'{low:g} to {high:g}' for low, high in pairs)}]"
