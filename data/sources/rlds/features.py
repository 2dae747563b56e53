"""The features of an RLDS data set, as `features.json` of TensorFlow Datasets describes them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.json_record import JsonRecord
from data.sources.rlds.tfrecord import Example

STEPS = "steps/"  # the path of the features of a step
Packing = Literal["none", "bytes", "zlib"]
_PACKINGS: dict[str, Packing] = {
    "none": "none",
    "1": "none",
    "bytes": "bytes",
    "2": "bytes",
    "zlib": "zlib",
    "3": "zlib",
}
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_NUMBER_TYPES = ("bool", "float16", "float32", "float64", *_INTEGERS)
_MAX_NUMBERS = 4096  # in one step of a feature that may be a part of an action or a state


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of a record.

    Attributes:
        path: Its name in the record.
        kind: `image`, `text` or `numbers`.
        width: Numbers in one step, of a table or a longer shape one after the other; 0 where that is not
            fixed, and for the other kinds.
        packing: Whether the numbers of a step are one byte string, and whether it is compressed.
        dtype: Type of the packed numbers.
        ragged: Whether each step has a list of its own length.
    """

    path: str
    kind: str
    width: int = 0
    packing: Packing = "none"
    dtype: str = "float32"
    ragged: bool = False

    @property
    def of_step(self) -> bool:
        """Whether each step has a value, and not the episode one."""
        return self.path.startswith(STEPS)

    def numbers(self, example: Example, where: str) -> NDArray[Any]:
        """The values in a record, [T, width]; of a ragged feature NaN behind those of a shorter step.

        Raises:
            InputError: There are none, or not as many as `features.json` says.
        """
        if self.ragged:
            return self._ragged(example, where)
        if self.packing != "none":
            return self._packed(example, where)
        flat = example.numbers(self.path)
        if not self.width or len(flat) % self.width:
            raise InputError(
                f"{where}: {self.path} holds {len(flat)} numbers, features.json says {self.width} a step; "
                "export it again"
            )
        return flat.reshape(-1, self.width)

    def _packed(self, example: Example, where: str) -> NDArray[Any]:
        dtype = np.dtype(self.dtype).newbyteorder("<")
        size = self.width * dtype.itemsize
        rows: list[NDArray[Any]] = []
        for step, content in enumerate(example.texts(self.path)):
            unpacked = _decompressed(content, size) if self.packing == "zlib" else content
            if unpacked is None or len(unpacked) != size:
                raise InputError(
                    f"{where}: {self.path} of step {step} is not {self.width} packed numbers ({self.dtype}, "
                    f"{self.packing}); copy the data set again"
                )
            rows.append(np.frombuffer(unpacked, dtype))
        return np.stack(rows).astype(np.float64) if rows else np.zeros((0, self.width))

    def _ragged(self, example: Example, where: str) -> NDArray[Any]:
        flat = example.numbers(f"{self.path}/ragged_flat_values")
        lengths = example.numbers(f"{self.path}/ragged_row_lengths_0")
        if (lengths < 0).any() or lengths.sum() != len(flat) or (lengths > _MAX_NUMBERS).any():
            raise InputError(
                f"{where}: {self.path} has {len(flat)} numbers in lists of {lengths.sum()} together, "
                f"expected as many, at most {_MAX_NUMBERS} in each; export the data set again"
            )
        table = np.full((len(lengths), max(lengths.tolist(), default=0)), np.nan)
        table[np.arange(table.shape[1]) < lengths[:, None]] = flat
        return table


def read_features(record: JsonRecord) -> dict[str, Feature]:
    """The features of a record by name: those of a step by their path below `steps`, others by their path.

    Raises:
        InputError: Not the content of a `features.json`.
    """
    return {feature.path.removeprefix(STEPS): feature for feature in _below(record, "")}


def _below(record: JsonRecord, path: str) -> Iterator[Feature]:
    """All features below one of `features.json` that can be read."""
    if "featuresDict" in record:
        for name, member in record.record("featuresDict").members("features").items():
            yield from _below(member, f"{path}/{name}" if path else name)
    elif "sequence" in record:
        sequence = record.record("sequence")
        inner = sequence.record("feature")
        if path.startswith(STEPS):
            yield from _list_in_step(sequence, inner, path)
        else:
            yield from _below(inner, path)
    elif "image" in record:
        yield Feature(path, "image")
    elif "text" in record:
        yield Feature(path, "text")
    elif "tensor" in record:
        yield from _tensor(record.record("tensor"), path)


def _tensor(tensor: JsonRecord, path: str) -> Iterator[Feature]:
    dtype = tensor.text("dtype")
    packing = _PACKINGS.get(tensor.text("encoding").lower() if "encoding" in tensor else "none")
    if dtype in ("string", "object"):
        yield Feature(path, "text")
    elif packing is not None and dtype in _NUMBER_TYPES:
        yield Feature(path, "numbers", _width(tensor), packing, dtype)


def _list_in_step(sequence: JsonRecord, inner: JsonRecord, path: str) -> Iterator[Feature]:
    """A list of numbers in each step: of a fixed length, or a ragged one."""
    if "tensor" not in inner:
        return  # lists of pictures, texts or dictionaries
    for feature in _tensor(inner.record("tensor"), path):
        length = sequence.text("length") if "length" in sequence else "-1"
        if feature.kind != "numbers" or feature.packing != "none":
            continue
        fixed = int(length) if length.isdecimal() and len(length) < 6 else 0
        if fixed:
            yield Feature(path, "numbers", _bounded(fixed * feature.width))
        elif feature.width == 1:
            yield Feature(path, "numbers", ragged=True)


def _width(tensor: JsonRecord) -> int:
    """Numbers in one step: 1 for a scalar, 0 where the size is not fixed."""
    shape = tensor.record("shape") if "shape" in tensor else None
    if shape is None or "dimensions" not in shape:
        return 1
    sides = shape.texts("dimensions")
    fixed = all(side.isdecimal() and len(side) < 6 for side in sides)
    return _bounded(math.prod(map(int, sides))) if fixed else 0


def _bounded(width: int) -> int:
    return width if width <= _MAX_NUMBERS else 0


def _decompressed(content: bytes, size: int) -> bytes | None:
    """Decompress to `size` bytes; None: damaged, or there are more."""
    try:
        decompressor = zlib.decompressobj()
        unpacked = decompressor.decompress(content, size + 1)
    except zlib.error:
        return None
    return unpacked if decompressor.eof else None
