"""Reference of `data.stream.batch_assembler`: samples and packing, one sample at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.contracts import PackedBatch
from data.stream.samples import action_blocks, action_prompt, answer_block_ids, join_ids, world_prompt
from data.tokens.vocabulary import END_OF_TURN, IGNORED_LABEL, PADDING


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample before packing; every array is int32 [S], conventions as in `data.contracts.PackedBatch`.

    Attributes:
        tokens: Token ids.
        labels: Shifted by one; `IGNORED_LABEL` where the next token belongs to the prompt or is missing.
        blocks: Action block ids: 0 ordinary, j > 0 the j-th answer block, negative before the last image.
        answer: Index of the first token of the answer.
        targets: float32 [K, D], normalised actions of an action sample; None: a world sample, or not given.
        present: bool [D], the numbers of an action that exist; None: all.
        source: Number of its data set.
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.int32]
    blocks: NDArray[np.int32]
    answer: int = 0
    targets: NDArray[np.float32] | None = None
    present: NDArray[np.bool_] | None = None
    source: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


def action_sample(
    text_ids: ArrayLike,
    image_blocks: Sequence[ArrayLike],
    action_ids: NDArray[np.integer],
    state_block: ArrayLike | None = None,
    targets: NDArray[np.float32] | None = None,
    present: NDArray[np.bool_] | None = None,
) -> Sample:
    """Text and frames up to time t -> the K actions from t on.

    Args:
        text_ids: As in `action_prompt`.
        image_blocks: As in `action_prompt`.
        action_ids: Bins [K, D], from `data.tokens.action.encode`.
        state_block: The state at time t, as in `action_prompt`.
        targets: The same actions, normalised, float32 [K, D].
        present: bool [D], the numbers of an action that exist; the others have no label. None: all.
    """
    prompt = action_prompt(text_ids, image_blocks, state_block)
    sample = _sample(prompt, join_ids(action_blocks(action_ids), [END_OF_TURN]), targets)
    sample.blocks[len(prompt) : -1] = answer_block_ids(*action_ids.shape)
    if present is None:
        return sample
    labels = sample.labels[len(prompt) - 1 : -2].reshape(len(action_ids), -1)
    labels[:, 1:-1][:, ~present] = IGNORED_LABEL
    return replace(sample, present=present)


def world_sample(
    text_ids: ArrayLike, image_block: ArrayLike, action_ids: NDArray[np.integer], next_block: ArrayLike
) -> Sample:
    """Frame at time t and the actions from then on -> the frames t + 1 .. t + P.

    Args:
        text_ids: As in `world_prompt`.
        image_block: As in `world_prompt`.
        action_ids: As in `world_prompt`.
        next_block: Ids [L] of the frame at t + 1, or [P, V, L] of several.
    """
    prompt = world_prompt(text_ids, image_block, action_ids)
    sample = _sample(prompt, join_ids(next_block, [END_OF_TURN]))
    ids = -answer_block_ids(*np.atleast_2d(action_ids).shape)  # negative: before the last image
    sample.blocks[len(prompt) - 1 - len(ids) : len(prompt) - 1] = ids
    return sample


def pack(
    rows: Sequence[Sequence[Sample]],
    sequence_length: int,
    widest: tuple[int, int] | None = None,
    segments_of_all: int | None = None,
) -> PackedBatch:
    """Lay the samples of each row one after the other, padding after the last.

    Action samples whose actions are not given as numbers have none in the batch.

    Args:
        rows: The samples of each of the B sequences.
        sequence_length: S, tokens of a sequence.
        widest: K and D that actions are padded to; None: those of the first action sample.
        segments_of_all: M, largest number of samples in a sequence; None: that of these rows.

    Raises:
        ValueError: The samples of a row do not fit; samples are never cut.
    """
    shape = (len(rows), sequence_length)
    tokens = np.full(shape, PADDING, np.int32)
    labels = np.full(shape, IGNORED_LABEL, np.int32)
    positions, segments, blocks = (np.zeros(shape, np.int32) for _ in range(3))
    count = np.arange(sequence_length, dtype=np.int32)
    starts: list[int] = []
    actions: list[Sample] = []
    most = max(map(len, rows)) if segments_of_all is None else segments_of_all
    sources = np.zeros((len(rows), most + 1), np.int32)
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
            sources[b, number] = sample.source
            if sample.targets is not None:
                starts.append(b * sequence_length + start + sample.answer)
                actions.append(sample)
    batch = PackedBatch(tokens, labels, positions, segments, blocks, sources=sources)
    if not actions:
        return batch
    targets, present = _padded(actions, widest)
    return replace(
        batch, action_starts=np.array(starts, np.int64), action_targets=targets, action_present=present
    )


def _padded(
    actions: Sequence[Sample], widest: tuple[int, int] | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets of action samples and which of their numbers exist, both [N, K, D]."""
    first = actions[0].targets
    assert first is not None
    chunk, width = first.shape if widest is None else widest
    targets = np.zeros((len(actions), chunk, width), np.float32)
    present = np.zeros(targets.shape, bool)
    for number, sample in enumerate(actions):
        assert sample.targets is not None
        for k, values in enumerate(sample.targets):
            for d, value in enumerate(values):
                if sample.present is None or sample.present[d]:
                    targets[number, k, d], present[number, k, d] = value, True
    return targets, present


def _sample(
    prompt: NDArray[np.int32], answer: NDArray[np.int32], targets: NDArray[np.float32] | None = None
) -> Sample:
    """Prompt and answer joined, every answer token as the label of the position before it."""
    tokens = np.concatenate([prompt, answer])
    labels = np.full(len(tokens), IGNORED_LABEL, np.int32)
    labels[len(prompt) - 1 : -1] = answer
    return Sample(tokens, labels, np.zeros(len(tokens), np.int32), len(prompt), targets)
