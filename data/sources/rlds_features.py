"""The features of an RLDS data set, as `features.json` of TensorFlow Datasets describes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data.json_record import JsonRecord

STEPS = "steps/"  # the path of the features of a step


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of a record.

    Attributes:
        path: Its name in the record.
        kind: `image`, `text` or `numbers`.
        width: Numbers in one step; 0 where that is not fixed, and for the other kinds.
    """

    path: str
    kind: str
    width: int = 0

    @property
    def of_step(self) -> bool:
        """Whether each step has a value, and not the episode one."""
        return self.path.startswith(STEPS)


def read_features(record: JsonRecord) -> dict[str, Feature]:
    """The features of a record by name: those of a step by their path below `steps`, others by their path.

    Raises:
        InputError: Not the content of a `features.json`.
    """
    return {feature.path.removeprefix(STEPS): feature for feature in _below(record, "")}


def _below(record: JsonRecord, path: str) -> Iterator[Feature]:
    """All features below one of `features.json`."""
    if "featuresDict" in record:
        for name, member in record.record("featuresDict").members("features").items():
            yield from _below(member, f"{path}/{name}" if path else name)
    elif "sequence" in record:
        yield from _below(record.record("sequence").record("feature"), path)
    elif "image" in record:
        yield Feature(path, "image")
    elif "text" in record:
        yield Feature(path, "text")
    elif "tensor" in record:
        tensor = record.record("tensor")
        kind = "text" if tensor.text("dtype") in ("string", "object") else "numbers"
        plain = "encoding" not in tensor or tensor.text("encoding").lower() in ("none", "1")
        if plain:  # a tensor packed into bytes cannot be used
            yield Feature(path, kind, _width(tensor))


def _width(tensor: JsonRecord) -> int:
    """Numbers in one step: 1 for a scalar, 0 where the size is not fixed."""
    shape = tensor.record("shape") if "shape" in tensor else None
    if shape is None or "dimensions" not in shape:
        return 1
    sides = shape.texts("dimensions")
    fixed = len(sides) == 1 and sides[0].isdecimal()
    return int(sides[0]) if fixed else 0
