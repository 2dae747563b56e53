"""Number of samples of every step and the sequence of each one: planned once, from the index alone.

The samples of a step are slots (`data.stream.order.stratified_sampler`), and the longest sample that a slot
can draw is known. The layout takes as many samples as fit with the exact mixture, so any draw fits and no
step needs packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data.config import MixtureConfig
from data.errors import InputError
from data.stream.order.mixture import action_share, dataset_shares, step_counts
from data.stream.order.packing import assign_sequences
from data.stream.order.stratified_sampler import largest_draws
from data.stream.windows.window_numbering import WindowNumbering

KINDS = 2  # action, world: the columns of every table
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


@dataclass(frozen=True, slots=True)
class DatasetWindows:
    """The windows of one data set.

    Attributes:
        name: Its name in messages.
        tables: Action windows and world windows.
        weight: Relative share of the samples.
    """

    name: str
    tables: tuple[WindowNumbering, WindowNumbering]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class StepLayout:
    """The sequences of the samples of every step.

    Attributes:
        counts: int64 [data sets, 2], action and world samples of a step.
        sequences: int64 [N], sequence of each sample: all of the first data set's action slots, its world
            slots, the next data set's, and so on.
        lengths: int64 [N], largest number of tokens of each sample.
    """

    counts: NDArray[np.int64]
    sequences: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def padding(self, datasets: Sequence[DatasetWindows], tokens: int) -> float:
        """Mean share of padding in steps of `tokens` tokens, over an epoch.

        Args:
            datasets: The data sets that it was planned for.
            tokens: Tokens of all sequences of a step.
        """
        means = np.array([[table.mean_length for table in dataset.tables] for dataset in datasets])
        return 1 - float((self.counts * means).sum()) / tokens


def plan_layout(
    datasets: Sequence[DatasetWindows], mixture: MixtureConfig, sequences: int, sequence_length: int
) -> StepLayout:
    """Find the fullest layout with the exact mixture.

    Args:
        datasets: The data sets.
        mixture: Weights of the kinds.
        sequences: G, sequences in a step, over all ranks.
        sequence_length: S, tokens of a sequence.

    Raises:
        InputError: A sample is longer than a sequence, or a kind, a data set or a sequence would have no
            sample.
    """
    share, shares = action_share(mixture), dataset_shares([dataset.weight for dataset in datasets])
    _check_fits(datasets, share, sequence_length)
    used = share > 0, share < 1
    means = [
        float(sum(s * dataset.tables[k].mean_length for s, dataset in zip(shares, datasets, strict=True)))
        for k in range(KINDS)
    ]
    max_samples = (
        int(sequences * sequence_length / (float(share) * means[0] + float(1 - share) * means[1])) + 1
    )
    exact = share.limit_denominator(max_samples)
    if (exact > 0, exact < 1) != used:
        raise _too_small(datasets, mixture, sequences, sequence_length)
    best: StepLayout | None = None
    fits, fails = 0, max_samples // exact.denominator + 1  # in groups of the smallest exact mixture
    while fails - fits > 1:
        groups = (fits + fails) // 2
        layout = _try(datasets, shares, exact, groups, sequences, sequence_length)
        fits, fails = (fits, groups) if layout is None else (groups, fails)
        best = best if layout is None else layout
    if best is None or len(np.unique(best.sequences)) < sequences:
        raise _too_small(datasets, mixture, sequences, sequence_length)
    _check_every_dataset(datasets, best, used)
    return best


def slot_lengths(table: WindowNumbering, count: int) -> NDArray[np.int64]:
    """Largest number of tokens of the sample of each of `count` slots, int64 [count]."""
    if not count:
        return np.empty(0, np.int64)
    return table.lengths(largest_draws(table.count, count))


def _try(
    datasets: Sequence[DatasetWindows],
    shares: Sequence[Fraction],
    exact: Fraction,
    groups: int,
    sequences: int,
    sequence_length: int,
) -> StepLayout | None:
    actions = groups * exact.numerator
    counts = step_counts(actions, groups * exact.denominator - actions, shares)
    lengths = np.concatenate(
        [
            slot_lengths(table, int(count))
            for dataset, row in zip(datasets, counts, strict=True)
            for table, count in zip(dataset.tables, row, strict=True)
        ]
    )
    assigned = assign_sequences(lengths, sequences, sequence_length)
    if assigned is None:
        return None
    worlds = np.repeat(np.tile([0, 1], len(datasets)), counts.reshape(-1))
    return StepLayout(counts, _spread(assigned, worlds, sequences)[assigned], lengths)


def _spread(assigned: NDArray[np.int64], worlds: NDArray[np.int64], sequences: int) -> NDArray[np.int64]:
    """New numbers of the sequences, such that any run of them has its share of world samples.

    World samples have the most labels, and so the most work in the last layer: ranks should have equally
    many.
    """
    counts = np.bincount(assigned, weights=worlds, minlength=sequences)
    order = np.argsort(
        np.arange(sequences, dtype=np.uint64) * _GOLDEN, kind="stable"
    )  # wraps: fractional parts
    numbers = np.empty(sequences, np.int64)
    numbers[np.argsort(counts, kind="stable")] = np.argsort(order, kind="stable")
    return numbers


def _check_fits(datasets: Sequence[DatasetWindows], share: Fraction, sequence_length: int) -> None:
    for dataset in datasets:
        for kind, table, used in zip(
            ("action", "world"), dataset.tables, (share > 0, share < 1), strict=True
        ):
            if used and table.longest > sequence_length:
                raise InputError(
                    f"{dataset.name}: the longest {kind} sample has {table.longest} tokens, but "
                    f"trainer.sequence_length is {sequence_length}; raise it to at least {table.longest}"
                )


def _check_every_dataset(
    datasets: Sequence[DatasetWindows], layout: StepLayout, used: tuple[bool, bool]
) -> None:
    for dataset, row in zip(datasets, layout.counts, strict=True):
        for kind, count, is_used in zip(("action", "world"), row, used, strict=True):
            if is_used and not count:
                raise InputError(
                    f"{dataset.name}: its weight {dataset.weight} gives it no {kind} sample in a step of "
                    f"{len(layout.sequences)} samples; raise the weight or trainer.global_batch"
                )


def _too_small(
    datasets: Sequence[DatasetWindows], mixture: MixtureConfig, sequences: int, sequence_length: int
) -> InputError:
    longest = [max(dataset.tables[kind].longest for dataset in datasets) for kind in range(KINDS)]
    return InputError(
        f"{sequences} sequences of {sequence_length} tokens cannot hold samples of up to {longest[0]} "
        f"(action) and {longest[1]} (world) tokens at {mixture.action} : {mixture.world} with no "
        "sequence empty; raise trainer.sequence_length, or choose another trainer.global_batch"
    )
