"""How many samples every step holds and which sequence each lies in: planned once, from the index alone.

The samples of a step are slots (see `slots`), and the longest sample a slot can ever draw is known. The
layout takes as many samples as fit with the mixture exact, so any draw fits and no step needs packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data.config import MixtureConfig
from data.errors import InputError
from data.stream.mixture import action_share, source_shares, step_counts
from data.stream.packing import fit
from data.stream.stratified_sampler import last_windows
from data.stream.window_table import WindowTable

KINDS = 2  # action, world: the columns of every table
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


@dataclass(frozen=True, slots=True)
class SourceWindows:
    """The windows of one data set.

    Attributes:
        name: What messages call it.
        tables: Action windows and world windows.
        weight: Relative share of the samples.
    """

    name: str
    tables: tuple[WindowTable, WindowTable]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the samples of every step lie.

    Attributes:
        counts: int64 [data sets, 2], action and world samples of a step.
        sequences: int64 [N], sequence of each sample: all of the first data set's action slots, its world
            slots, the next data set's, and so on.
        lengths: int64 [N], most tokens of each sample.
    """

    counts: NDArray[np.int64]
    sequences: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def padding(self, sources: Sequence[SourceWindows], tokens: int) -> float:
        """Mean share of padding in steps of `tokens` tokens, over an epoch.

        Args:
            sources: The data sets that it was planned for.
            tokens: Of all sequences of a step.
        """
        means = np.array([[table.mean_length for table in source.tables] for source in sources])
        return 1 - float((self.counts * means).sum()) / tokens


def plan_layout(
    sources: Sequence[SourceWindows], mixture: MixtureConfig, sequences: int, sequence_length: int
) -> Layout:
    """The fullest layout in which the mixture is exact.

    Args:
        sources: The data sets.
        mixture: Weights of the kinds.
        sequences: G, sequences in a step, over all ranks.
        sequence_length: S, tokens of a sequence.

    Raises:
        InputError: A sample is longer than a sequence, a kind or data set gets no sample, or not every
            sequence gets one.
    """
    share, shares = action_share(mixture), source_shares([source.weight for source in sources])
    _check_fits(sources, share, sequence_length)
    used = share > 0, share < 1
    means = [
        float(sum(s * source.tables[k].mean_length for s, source in zip(shares, sources, strict=True)))
        for k in range(KINDS)
    ]
    most = int(sequences * sequence_length / (float(share) * means[0] + float(1 - share) * means[1])) + 1
    exact = share.limit_denominator(most)
    if (exact > 0, exact < 1) != used:
        raise _too_small(sources, mixture, sequences, sequence_length)
    best: Layout | None = None
    fits, fails = 0, most // exact.denominator + 1  # in groups of the smallest exact mixture
    while fails - fits > 1:
        groups = (fits + fails) // 2
        layout = _try(sources, shares, exact, groups, sequences, sequence_length)
        fits, fails = (fits, groups) if layout is None else (groups, fails)
        best = best if layout is None else layout
    if best is None or len(np.unique(best.sequences)) < sequences:
        raise _too_small(sources, mixture, sequences, sequence_length)
    _check_every_source(sources, best, used)
    return best


def slot_lengths(table: WindowTable, count: int) -> NDArray[np.int64]:
    """Most tokens of the sample of each of `count` slots, int64."""
    if not count:
        return np.empty(0, np.int64)
    return table.lengths(last_windows(table.count, count))


def _try(
    sources: Sequence[SourceWindows],
    shares: Sequence[Fraction],
    exact: Fraction,
    groups: int,
    sequences: int,
    sequence_length: int,
) -> Layout | None:
    actions = groups * exact.numerator
    counts = step_counts(actions, groups * exact.denominator - actions, shares)
    lengths = np.concatenate(
        [
            slot_lengths(table, int(count))
            for source, row in zip(sources, counts, strict=True)
            for table, count in zip(source.tables, row, strict=True)
        ]
    )
    found = fit(lengths, sequences, sequence_length)
    if found is None:
        return None
    worlds = np.repeat(np.tile([0, 1], len(sources)), counts.reshape(-1))
    return Layout(counts, _spread(found, worlds, sequences)[found], lengths)


def _spread(found: NDArray[np.int64], worlds: NDArray[np.int64], sequences: int) -> NDArray[np.int64]:
    """New numbers of the sequences, so that any run of them has its share of world samples.

    World samples have most labels, and so most work in the last layer: ranks should have equally many.
    """
    held = np.bincount(found, weights=worlds, minlength=sequences)
    turn = np.argsort(np.arange(sequences, dtype=np.uint64) * _GOLDEN, kind="stable")  # wraps: fractions
    numbers = np.empty(sequences, np.int64)
    numbers[np.argsort(held, kind="stable")] = np.argsort(turn, kind="stable")
    return numbers


def _check_fits(sources: Sequence[SourceWindows], share: Fraction, sequence_length: int) -> None:
    for source in sources:
        for kind, table, used in zip(("action", "world"), source.tables, (share > 0, share < 1), strict=True):
            if used and table.longest > sequence_length:
                raise InputError(
                    f"{source.name}: the longest {kind} sample has {table.longest} tokens, but "
                    f"trainer.sequence_length is {sequence_length}; raise it to at least {table.longest}"
                )


def _check_every_source(sources: Sequence[SourceWindows], layout: Layout, used: tuple[bool, bool]) -> None:
    for source, row in zip(sources, layout.counts, strict=True):
        for kind, count, wanted in zip(("action", "world"), row, used, strict=True):
            if wanted and not count:
                raise InputError(
                    f"{source.name}: its weight {source.weight} gives it no {kind} sample in a step of "
                    f"{len(layout.sequences)} samples; raise the weight or trainer.global_batch"
                )


def _too_small(
    sources: Sequence[SourceWindows], mixture: MixtureConfig, sequences: int, sequence_length: int
) -> InputError:
    longest = [max(source.tables[kind].longest for source in sources) for kind in range(KINDS)]
    return InputError(
        f"{sequences} sequences of {sequence_length} tokens cannot hold samples of up to {longest[0]} "
        f"(action) and {longest[1]} (world) tokens at {mixture.action} : {mixture.world} with no "
        "sequence empty; raise trainer.sequence_length, or choose another trainer.global_batch"
    )
