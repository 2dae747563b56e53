"""The two kinds of sample, written once: which tokens, which labels, which action blocks.

    action sample   BOS text(task)  [state]  frame x (1..M)  EOT | action x K  EOT
    world sample    BOS text        frame  action x P        EOT | frame x P   EOT

    frame  = image x V, one of each camera
    image  = IMAGE_START, height, width, rows x (codes, IMAGE_NEW_LINE), IMAGE_END
    action = ACTION_START, 7 bins, ACTION_END
    state  = STATE_START, 8 bins, STATE_END
    EOT    = END_OF_TURN; the bar parts prompt and answer; only the answer is learned

The prompts alone are what the policy and the world model are given at inference. Source of the
templates: the published WorldVLA code (arXiv 2506.21539; M = 2, K = 5 or 10, P = 1, V = 1, no state);
cameras and state: RynnVLA-002 (arXiv 2511.17502). `assembly` writes the same for many samples at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.tokens.vocabulary import (
    ACTION_BLOCK_LENGTH,
    ACTION_DIM,
    ACTION_END,
    ACTION_START,
    BOS,
    END_OF_TURN,
    IGNORED_LABEL,
    STATE_BLOCK_LENGTH,
)

ACTION_TEXT = "What action should the robot take to {task}?"
WORLD_TEXT = (
    "Generate the next image based on the provided sequence of historical images and corresponding actions."
)

_BOS = np.array([BOS], np.int32)
_END_OF_TURN = np.array([END_OF_TURN], np.int32)
_ORDINARY = 0  # block id of tokens outside action blocks


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample before packing; every array is int32 [S], conventions as in `contracts.PackedBatch`.

    Attributes:
        tokens: Token ids.
        labels: Shifted by one; `IGNORED_LABEL` where the next token belongs to the prompt or is missing.
        blocks: Action block ids: 0 ordinary, j > 0 the j-th answer block, negative before the last image.
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.int32]
    blocks: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tokens)


def action_text(instruction: str) -> str:
    """The words of an action sample's prompt for a task."""
    return ACTION_TEXT.format(task=instruction)


@dataclass(frozen=True, slots=True)
class SampleForm:
    """The sizes that samples of one training have in common.

    Attributes:
        image: L, tokens of one image block.
        views: V, images (cameras) of a time step.
        history: M, most time steps that an action sample sees.
        chunk: K, actions it predicts.
        predicted: P, time steps that a world sample predicts.
        state: Whether action samples hold a state block.
    """

    image: int
    views: int = 1
    history: int = 2
    chunk: int = 5
    predicted: int = 1
    state: bool = False

    @property
    def frame(self) -> int:
        """Tokens of one time step's images."""
        return self.views * self.image

    def action_length(self, text: int, frames: int | None = None) -> int:
        """Tokens of an action sample of `text` ids and `frames` time steps (default: M)."""
        seen = (self.history if frames is None else frames) * self.frame
        return 1 + text + self.state * STATE_BLOCK_LENGTH + seen + 1 + self.action_answer

    def world_length(self, text: int) -> int:
        """Tokens of a world sample of `text` ids."""
        return 1 + text + self.frame + self.predicted * ACTION_BLOCK_LENGTH + 1 + self.world_answer

    @property
    def action_answer(self) -> int:
        """Tokens of an action sample's answer."""
        return self.chunk * ACTION_BLOCK_LENGTH + 1

    @property
    def world_answer(self) -> int:
        """Tokens of a world sample's answer."""
        return self.predicted * self.frame + 1


def action_prompt(
    text_ids: ArrayLike, image_blocks: Sequence[ArrayLike], state_block: ArrayLike | None = None
) -> NDArray[np.int32]:
    """Prompt of an action sample, int32 [S], up to and with its end of turn.

    Args:
        text_ids: Ids of `action_text(instruction)`, without BOS.
        image_blocks: The frames seen, oldest first: ids [L] each, or [V, L] where there are V cameras, from
            `image_block`.
        state_block: Ids [10] of the newest state, from `data.tokens.state.state_blocks`; None: without.
    """
    state = [] if state_block is None else [state_block]
    return _join(_BOS, text_ids, *state, *image_blocks, _END_OF_TURN)


def action_sample(
    text_ids: ArrayLike,
    image_blocks: Sequence[ArrayLike],
    action_ids: NDArray[np.integer],
    state_block: ArrayLike | None = None,
) -> Sample:
    """Text and frames up to time t -> the K actions from t on.

    Args:
        text_ids: Ids of `action_text(instruction)`, without BOS.
        image_blocks: The frames seen, oldest first, as in `action_prompt`.
        action_ids: Bins [K, 7], from `data.tokens.action.encode`.
        state_block: The state at time t, as in `action_prompt`.
    """
    prompt = action_prompt(text_ids, image_blocks, state_block)
    sample = _sample(prompt, _join(action_blocks(action_ids), _END_OF_TURN))
    sample.blocks[len(prompt) : -1] = answer_block_ids(len(action_ids))
    return sample


def world_prompt(
    text_ids: ArrayLike, image_block: ArrayLike, action_ids: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Prompt of a world sample, int32 [S], up to and with its end of turn.

    Args:
        text_ids: Ids of `WORLD_TEXT`, without BOS.
        image_block: The frame at time t: ids [L], or [V, L] where there are V cameras.
        action_ids: Bins [7] of the action at time t, or [P, 7] of the actions t .. t + P - 1.
    """
    return _join(_BOS, text_ids, image_block, action_blocks(np.atleast_2d(action_ids)), _END_OF_TURN)


def world_sample(
    text_ids: ArrayLike, image_block: ArrayLike, action_ids: NDArray[np.integer], next_block: ArrayLike
) -> Sample:
    """Frame at time t and the actions from then on -> the frames t + 1 .. t + P.

    Args:
        text_ids: As `world_prompt`.
        image_block: As `world_prompt`.
        action_ids: As `world_prompt`.
        next_block: Ids [L] of the frame at t + 1, or [P, V, L] of several.
    """
    prompt = world_prompt(text_ids, image_block, action_ids)
    sample = _sample(prompt, _join(next_block, _END_OF_TURN))
    ids = -answer_block_ids(len(np.atleast_2d(action_ids)))  # negative: before the last image
    sample.blocks[len(prompt) - 1 - len(ids) : len(prompt) - 1] = ids
    return sample


def answer_block_ids(count: int) -> NDArray[np.int32]:
    """Block ids of `count` action blocks in an answer, int32 [9 count]: 1 nine times, 2 nine times, ..."""
    return np.repeat(np.arange(1, count + 1, dtype=np.int32), ACTION_BLOCK_LENGTH)


def action_blocks(action_ids: NDArray[np.integer]) -> NDArray[np.int32]:
    """Bins [K, 7] -> the K action blocks, one after the other, int32 [9 K]."""
    blocks = np.empty((len(action_ids), ACTION_BLOCK_LENGTH), np.int32)
    blocks[:, 0] = ACTION_START
    blocks[:, 1 : 1 + ACTION_DIM] = action_ids
    blocks[:, -1] = ACTION_END
    return blocks.reshape(-1)


def _join(*parts: ArrayLike) -> NDArray[np.int32]:
    return np.concatenate([np.ravel(part) for part in parts], dtype=np.int32, casting="same_kind")


def _sample(prompt: NDArray[np.int32], answer: NDArray[np.int32]) -> Sample:
    """Prompt and answer joined, every answer token as the label of the position before it."""
    tokens = np.concatenate([prompt, answer])
    labels = np.full(len(tokens), IGNORED_LABEL, np.int32)
    labels[len(prompt) - 1 : -1] = answer
    return Sample(tokens, labels, np.full(len(tokens), _ORDINARY, np.int32))
