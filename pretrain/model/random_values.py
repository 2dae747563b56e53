"""Random numbers that are functions of a name and a place: any part of a tensor is drawn alone.

The element in row r and column c of a tensor [R, C] gets half of a 64-bit hash (SplitMix64: Steele, Lea and
Flood, 2014) of its pair's number, r * ceil(C / 2) + floor(c / 2), and of a key made of the name. Which half
is c mod 2. So the values of a region do not depend on what else is drawn: a rank draws only what it holds.

Every operation is exact integer arithmetic, a look-up or one correctly rounded fp32 operation: the bits are
the same for every region, number of threads, processor and release of numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.model.seeds import seed_of

Bits = NDArray[np.uint32]
Values = NDArray[np.float32]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the step of SplitMix64, and its finaliser:
_FINALISER = tuple(
    (np.uint64(shift), np.uint64(factor))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
)
_ONE = np.uint32(1)
_SIGN = np.uint32(31)  # its place in fp32
_MANTISSA, _BIAS = 23, 127  # of fp32
_SEGMENT_BITS = 6  # of the mantissa: segments in each octave of the probability
_OCTAVES = 31
_UNIFORM_BITS = 24
_BLOCK = 1 << 15  # values drawn at once: their arrays stay in the processor's cache


class _Scratch:
    """Arrays that a thread uses again for every block: new ones would cost more than the numbers."""

    def __init__(self, size: int) -> None:
        self.words = np.empty((2, size), np.uint64)
        self.index = np.empty(size, np.intp)
        self.values = np.empty((2, size), np.float32)


Distribution = Callable[[Bits, Values, _Scratch], None]
"""Writes values into the second argument, contiguous, of uniform 32-bit numbers of the same shape."""


def draw(
    name: str, columns: int, rows: tuple[int, int], selected: tuple[int, int], distribution: Distribution
) -> Tensor:
    """Draw a region of a tensor [R, columns].

    Args:
        name: Of the random numbers; another name, other numbers.
        columns: Of the whole tensor.
        rows: First and last (exclusive) row of the region.
        selected: First and last (exclusive) column of the region.
        distribution: Of the values: `normal` or `uniform`.

    Returns:
        fp32 [rows, selected columns], on the CPU.
    """
    values = np.empty((rows[1] - rows[0], selected[1] - selected[0]), np.float32)
    if not values.size:
        return torch.from_numpy(values)
    step = max(1, _BLOCK // values.shape[1])

    def fill(first: int, last: int) -> None:
        scratch = _Scratch(min(step, last - first) * (values.shape[1] + 2))
        for start in range(first, last, step):
            stop = min(start + step, last)
            bits = random_bits(name, columns, (start, stop), selected, scratch)
            distribution(bits, values[start - rows[0] : stop - rows[0]], scratch)

    threads = min(torch.get_num_threads(), -(-len(values) // step))
    if threads == 1:
        fill(*rows)
    else:  # numpy's loops do not hold the interpreter's lock
        bounds = np.linspace(*rows, threads + 1).astype(int).tolist()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, bounds[:-1], bounds[1:]))
    return torch.from_numpy(values)


def random_bits(
    name: str, columns: int, rows: tuple[int, int], selected: tuple[int, int], scratch: _Scratch | None = None
) -> Bits:
    """Uniform 32-bit numbers of a region, as `draw` uses them: uint32 [rows, selected columns]."""
    first, last = selected[0] // 2, -(-selected[1] // 2)  # pairs of columns
    shape = rows[1] - rows[0], last - first
    words = np.empty((2, shape[0] * shape[1]), np.uint64) if scratch is None else scratch.words
    pairs, shifted = (array[: shape[0] * shape[1]].reshape(shape) for array in words)
    starts = np.arange(*rows, dtype=np.uint64) * np.uint64(-(-columns // 2))
    np.add(starts[:, None], np.arange(first, last, dtype=np.uint64), out=pairs)
    pairs *= _GOLDEN
    pairs += np.uint64(seed_of(name) % 2**64)
    for shift, factor in _FINALISER:
        np.right_shift(pairs, shift, out=shifted)
        pairs ^= shifted
        if factor != 1:
            pairs *= factor
    skipped = selected[0] - 2 * first
    return pairs.view(np.uint32)[:, skipped : skipped + selected[1] - selected[0]]


def uniform(limit: float) -> Distribution:
    """Uniform between `-limit` and `limit`, both exclusive, of 2^24 values."""
    centre, scale = np.float32(2 ** (_UNIFORM_BITS - 1) - 0.5), np.float32(limit / 2 ** (_UNIFORM_BITS - 1))

    def distribute(bits: Bits, values: Values, scratch: _Scratch) -> None:
        np.copyto(values, bits >> np.uint32(32 - _UNIFORM_BITS), casting="unsafe")
        values -= centre
        values *= scale

    return distribute


def normal(deviation: float) -> Distribution:
    """Normal with mean 0, up to 6.2 deviations: one bit is the sign, 31 the probability of larger values.

    The inverse of the distribution function is interpolated linearly between points, 64 in each octave of the
    probability, at which it is exact; the error is below 2e-5 of a deviation.
    """
    offsets, slopes = _segments()

    def distribute(bits: Bits, values: Values, scratch: _Scratch) -> None:
        index = scratch.index[: bits.size].reshape(bits.shape)
        integers, offset = (array[: bits.size].reshape(bits.shape) for array in scratch.values)
        place = integers.view(np.uint32)
        np.right_shift(bits, _ONE, out=place)
        place |= _ONE
        probability = offset
        np.copyto(probability, integers.view(np.int32), casting="unsafe")  # in units of 2^-32: 1 to 2^31
        segment = integers.view(np.int32)
        np.right_shift(probability.view(np.int32), np.int32(_MANTISSA - _SEGMENT_BITS), out=segment)
        segment -= np.int32(_BIAS << _SEGMENT_BITS)
        np.copyto(index, segment)
        slopes.take(index, out=values, mode="clip")  # the other modes copy `out`
        values *= probability
        values += offsets.take(index, out=offset, mode="clip")
        values *= np.float32(deviation)
        sign = integers.view(np.uint32)
        np.left_shift(bits, _SIGN, out=sign)
        view = values.view(np.uint32)
        view ^= sign

    return distribute


@cache
def _segments() -> tuple[Values, Values]:
    """Offset and slope of every segment of the inverse distribution function, fp32 [31 * 64 + 1] each.

    The last one is for a probability of one half alone.
    """
    size = 1 << _SEGMENT_BITS
    octaves = np.outer(2.0 ** np.arange(_OCTAVES), 1 + np.arange(size) / size)
    points = np.append(octaves.ravel(), 2.0**_OCTAVES)
    quantiles = np.array([-NormalDist().inv_cdf(point / 2.0 ** (_OCTAVES + 1)) for point in points.tolist()])
    slopes = np.diff(quantiles) / np.diff(points)
    offsets = quantiles[:-1] - slopes * points[:-1]
    return np.append(offsets, 0.0).astype(np.float32), np.append(slopes, 0.0).astype(np.float32)
