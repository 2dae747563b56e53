"""Several samples in each sequence: how many of which kind, and how they lie in the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data.config import MixtureConfig
from data.contracts import PackedBatch
from data.errors import InputError
from data.stream.sequence import Sample
from data.tokens.vocabulary import IGNORED_LABEL, PADDING


def pack(rows: Sequence[Sequence[Sample]], sequence_length: int) -> PackedBatch:
    """Lay the samples of each row one after the other, padding after the last.

    Args:
        rows: The samples of each of the B sequences.
        sequence_length: S, tokens of a sequence.

    Raises:
        ValueError: The samples of a row do not fit; nothing is ever cut.
    """
    shape = (len(rows), sequence_length)
    tokens = np.full(shape, PADDING, np.int32)
    labels = np.full(shape, IGNORED_LABEL, np.int32)
    positions, segments, blocks = (np.zeros(shape, np.int32) for _ in range(3))
    count = np.arange(sequence_length, dtype=np.int32)
    for b, row in enumerate(rows):
        end = 0
        for number, sample in enumerate(row, start=1):
            start, end = end, end + len(sample)
            if end > sequence_length:
                raise ValueError(f"samples of {end} tokens do not fit a sequence of {sequence_length}")
            tokens[b, start:end] = sample.tokens
            labels[b, start:end] = sample.labels
            positions[b, start:end] = count[: len(sample)]
            segments[b, start:end] = number
            blocks[b, start:end] = sample.blocks
    return PackedBatch(tokens, labels, positions, segments, blocks)


def sample_layout(
    mixture: MixtureConfig, longest_action: int, longest_world: int, sequences: int, sequence_length: int
) -> NDArray[np.int64]:
    """How many samples of each kind each sequence of a step holds: the same at every step.

    Planned for the longest samples, so that any samples fit, and as full as the mixture allows while
    it is exact within the step (weights 1 : 1 give as many action as world samples).

    Args:
        mixture: Weights of the kinds.
        longest_action: Tokens of the longest action sample of the dataset.
        longest_world: Tokens of the longest world sample.
        sequences: G, sequences in a step, over all ranks.
        sequence_length: S, tokens of a sequence.

    Returns:
        int64 [2, G]: action samples and world samples of each sequence.

    Raises:
        InputError: A sample is longer than a sequence, or the step is too small for the mixture.
    """
    action_share = _action_share(mixture)
    _check_fits("action", longest_action, sequence_length, action_share > 0)
    _check_fits("world", longest_world, sequence_length, action_share < 1)
    mean_length = action_share * longest_action + (1 - action_share) * longest_world
    most = int(sequences * sequence_length / mean_length)
    exact = action_share.limit_denominator(max(most, 1))
    if (exact == 0) != (action_share == 0) or (exact == 1) != (action_share == 1):
        raise _too_small(mixture, sequences, sequence_length, longest_action, longest_world)
    best: NDArray[np.int64] | None = None
    fits, fails = 0, most // exact.denominator + 1  # in groups of the smallest exact mixture
    while fails - fits > 1:
        groups = (fits + fails) // 2
        actions = groups * exact.numerator
        worlds = groups * exact.denominator - actions
        layout = _spread(actions, worlds, longest_action, longest_world, sequences, sequence_length)
        fits, fails = (fits, groups) if layout is None else (groups, fails)
        best = best if layout is None else layout
    if best is None or not best.sum(axis=0).all():
        raise _too_small(mixture, sequences, sequence_length, longest_action, longest_world)
    return best


def _spread(
    actions: int, worlds: int, longest_action: int, longest_world: int, sequences: int, sequence_length: int
) -> NDArray[np.int64] | None:
    """Action samples evenly over the sequences, world samples where room is left; None if they do not fit."""
    edges = np.arange(sequences + 1, dtype=np.int64)
    actions_of = np.diff(edges * actions // sequences)
    room_of = (sequence_length - actions_of * longest_action) // longest_world
    room = int(room_of.sum())
    if room_of.min() < 0 or worlds > room:
        return None
    filled = np.concatenate([[0], np.cumsum(room_of)]) * worlds // max(room, 1)
    return np.stack([actions_of, np.diff(filled)])


def _action_share(mixture: MixtureConfig) -> Fraction:
    weights = (mixture.action, mixture.world)
    if not all(np.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise InputError(
            f"mixture weights are action={mixture.action} world={mixture.world}, expected finite numbers "
            "of at least 0, one of them above 0"
        )
    # 0.3 : 0.7 is meant as 3 : 7, not as the neighbouring binary fractions.
    action, world = (Fraction(w).limit_denominator(1_000_000) for w in weights)
    return action / (action + world) if action + world else Fraction(1, 2)


def _check_fits(kind: str, longest: int, sequence_length: int, used: bool) -> None:
    if used and longest > sequence_length:
        raise InputError(
            f"the longest {kind} sample has {longest} tokens, but trainer.sequence_length is "
            f"{sequence_length}; raise it to at least {longest}"
        )


def _too_small(
    mixture: MixtureConfig, sequences: int, sequence_length: int, longest_action: int, longest_world: int
) -> InputError:
    return InputError(
        f"{sequences} sequences of {sequence_length} tokens cannot hold samples of up to {longest_action} "
        f"(action) and {longest_world} (world) tokens at {mixture.action} : {mixture.world} with no "
        "sequence empty; raise trainer.sequence_length, or choose another trainer.global_batch"
    )
