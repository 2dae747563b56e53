"""The templates of the two kinds of sample: their sizes, their prompts, and their action blocks.

    action sample   BOS text(task)  [state]  frame x (1..M)  EOT | action x K  EOT
    world sample    BOS text        frame  action x P        EOT | frame x P   EOT

    frame  = image x V, one of each camera
    image  = IMAGE_START, height, width, rows x (codes, IMAGE_NEW_LINE), IMAGE_END
    action = ACTION_START, D bins, ACTION_END     D = 7, S = 8 in WorldVLA's and RynnVLA-002's data
    state  = STATE_START, S bins, STATE_END
    EOT    = END_OF_TURN; the bar separates prompt and answer; only the answer has labels

The prompts are the input of the policy and of the world model at inference; `data.stream.batch_assembler`
writes whole samples for training. Source of the templates: the published WorldVLA code (arXiv 2506.21539; M
= 2, K = 5 or 10, P = 1, V = 1, no state); cameras and state: RynnVLA-002 (arXiv 2511.17502).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.tokens.vocabulary import (
    ACTION_DIM,
    ACTION_END,
    ACTION_START,
    BOS,
    END_OF_TURN,
    block_length,
)


@dataclass(frozen=True, slots=True)
class SampleForm:
    """The sizes that all samples of a data set have in common.

    Attributes:
        image: L, tokens of one image block.
        views: V, images (cameras) of a time step.
        history: M, largest number of time steps that an action sample sees.
        chunk: K, actions that it predicts.
        predicted: P, time steps that a world sample predicts.
        action_dim: D, numbers of an action.
        state_dim: S, numbers of a state; 0: samples hold no state block.
    """

    image: int
    views: int = 1
    history: int = 2
    chunk: int = 5
    predicted: int = 1
    action_dim: int = ACTION_DIM
    state_dim: int = 0

    @property
    def frame(self) -> int:
        """Tokens of one time step's images."""
        return self.views * self.image

    @property
    def action_block(self) -> int:
        """Tokens of an action block."""
        return block_length(self.action_dim)

    @property
    def state_block(self) -> int:
        """Tokens of the state block; 0: there is none."""
        return block_length(self.state_dim) if self.state_dim else 0

    def action_length(self, text: int, frames: int | None = None) -> int:
        """Tokens of an action sample of `text` ids and `frames` time steps (default: M)."""
        seen = (self.history if frames is None else frames) * self.frame
        return 1 + text + self.state_block + seen + 1 + self.action_answer

    def world_length(self, text: int) -> int:
        """Tokens of a world sample of `text` ids."""
        return 1 + text + self.frame + self.predicted * self.action_block + 1 + self.world_answer

    @property
    def action_answer(self) -> int:
        """Tokens of an action sample's answer."""
        return self.chunk * self.action_block + 1

    @property
    def world_answer(self) -> int:
        """Tokens of a world sample's answer."""
        return self.predicted * self.frame + 1


def action_prompt(
    text_ids: ArrayLike, image_blocks: Sequence[ArrayLike], state_block: ArrayLike | None = None
) -> NDArray[np.int32]:
    """Prompt of an action sample, int32 [S], including its end of turn.

    Args:
        text_ids: Ids of `action_text(instruction)`, without BOS.
        image_blocks: The frames seen, oldest first: ids [L] each, or [V, L] for V cameras, from
            `data.tokens.image_block.image_block`.
        state_block: Ids [S + 2] of the newest state, from `data.tokens.state.state_blocks`; None: without.
    """
    state = [] if state_block is None else [state_block]
    return join_ids([BOS], text_ids, *state, *image_blocks, [END_OF_TURN])


def world_prompt(
    text_ids: ArrayLike, image_block: ArrayLike, action_ids: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Prompt of a world sample, int32 [S], including its end of turn.

    Args:
        text_ids: Ids of `WORLD_TEXT`, without BOS.
        image_block: The frame at time t: ids [L], or [V, L] for V cameras.
        action_ids: Bins [D] of the action at time t, or [P, D] of the actions t .. t + P - 1.
    """
    return join_ids([BOS], text_ids, image_block, action_blocks(np.atleast_2d(action_ids)), [END_OF_TURN])


def answer_block_ids(count: int, action_dim: int = ACTION_DIM) -> NDArray[np.int32]:
    """Block ids of `count` action blocks in an answer, int32 [(D + 2) count]: D + 2 times 1, then 2, ..."""
    return np.repeat(np.arange(1, count + 1, dtype=np.int32), block_length(action_dim))


def action_blocks(action_ids: NDArray[np.integer]) -> NDArray[np.int32]:
    """Bins [K, D] -> the K action blocks, one after the other, int32 [(D + 2) K]."""
    blocks = np.empty((len(action_ids), block_length(action_ids.shape[1])), np.int32)
    blocks[:, 0] = ACTION_START
    blocks[:, 1:-1] = action_ids
    blocks[:, -1] = ACTION_END
    return blocks.reshape(-1)


def join_ids(*parts: ArrayLike) -> NDArray[np.int32]:
    """Ids of any shapes, flattened and joined, int32 [S]."""
    return np.concatenate([np.ravel(part) for part in parts], dtype=np.int32, casting="same_kind")
