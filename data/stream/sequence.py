"""The two kinds of sample, written once: which tokens, which labels, which action blocks.

    action sample   BOS text(task)  image x (1..M)  EOT | action x K  EOT
    world sample    BOS text        image  action   EOT | image       EOT

    image  = IMAGE_START, height, width, rows x (codes, IMAGE_NEW_LINE), IMAGE_END
    action = ACTION_START, 7 bins, ACTION_END
    EOT    = END_OF_TURN; the bar parts prompt and answer; only the answer is learned

The prompts alone are what the policy and the world model are given at inference. Source of the
templates: the published WorldVLA code (arXiv 2506.21539).
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
)

ACTION_TEXT = "What action should the robot take to {task}?"
WORLD_TEXT = (
    "Generate the next image based on the provided sequence of historical images and corresponding actions."
)

_BOS = np.array([BOS], np.int32)
_END_OF_TURN = np.array([END_OF_TURN], np.int32)
_ORDINARY = 0  # block id of tokens outside action blocks
_BEFORE_LAST_IMAGE = -1  # block id of a world sample's action


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


def action_prompt(text_ids: ArrayLike, image_blocks: Sequence[ArrayLike]) -> NDArray[np.int32]:
    """Prompt of an action sample, int32 [S], up to and with its end of turn.

    Args:
        text_ids: Ids of `action_text(instruction)`, without BOS.
        image_blocks: The frames seen, oldest first: ids [L] each, from `image_block`.
    """
    return _join(_BOS, text_ids, *image_blocks, _END_OF_TURN)


def action_sample(
    text_ids: ArrayLike, image_blocks: Sequence[ArrayLike], action_ids: NDArray[np.integer]
) -> Sample:
    """Text and frames up to time t -> the K actions from t on.

    Args:
        text_ids: Ids of `action_text(instruction)`, without BOS.
        image_blocks: The frames seen, oldest first: ids [L] each, from `image_block`.
        action_ids: Bins [K, 7], from `data.tokens.action.encode`.
    """
    prompt = action_prompt(text_ids, image_blocks)
    sample = _sample(prompt, _join(action_blocks(action_ids), _END_OF_TURN))
    answer = sample.blocks[len(prompt) : -1].reshape(len(action_ids), ACTION_BLOCK_LENGTH)
    answer[:] = np.arange(1, len(action_ids) + 1, dtype=np.int32)[:, None]
    return sample


def world_prompt(
    text_ids: ArrayLike, image_block: ArrayLike, action_ids: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Prompt of a world sample, int32 [S], up to and with its end of turn.

    Args:
        text_ids: Ids of `WORLD_TEXT`, without BOS.
        image_block: The frame at time t: ids [L].
        action_ids: Bins [7] of the action at time t.
    """
    return _join(_BOS, text_ids, image_block, action_blocks(action_ids[None]), _END_OF_TURN)


def world_sample(
    text_ids: ArrayLike, image_block: ArrayLike, action_ids: NDArray[np.integer], next_block: ArrayLike
) -> Sample:
    """Frame and action at time t -> the frame at t + 1 (ids [L]); other arguments as `world_prompt`."""
    prompt = world_prompt(text_ids, image_block, action_ids)
    sample = _sample(prompt, _join(next_block, _END_OF_TURN))
    sample.blocks[len(prompt) - 1 - ACTION_BLOCK_LENGTH : len(prompt) - 1] = _BEFORE_LAST_IMAGE
    return sample


def action_sample_length(text: int, image: int, frames: int, chunk: int) -> int:
    """Tokens of an action sample: `text` ids, `frames` images of `image` tokens, `chunk` actions."""
    return 1 + text + frames * image + 1 + chunk * ACTION_BLOCK_LENGTH + 1


def world_sample_length(text: int, image: int) -> int:
    """Tokens of a world sample: `text` ids and two images of `image` tokens."""
    return 1 + text + image + ACTION_BLOCK_LENGTH + 1 + image + 1


def action_blocks(action_ids: NDArray[np.integer]) -> NDArray[np.int32]:
    """Bins [K, 7] -> the K action blocks, one after the other, int32 [9 K]."""
    blocks = np.empty((len(action_ids), ACTION_BLOCK_LENGTH), np.int32)
    blocks[:, 0] = ACTION_START
    blocks[:, 1 : 1 + ACTION_DIM] = action_ids
    blocks[:, -1] = ACTION_END
    return blocks.reshape(-1)


def _join(*parts: ArrayLike) -> NDArray[np.int32]:
    return np.concatenate(parts, dtype=np.int32, casting="same_kind")


def _sample(prompt: NDArray[np.int32], answer: NDArray[np.int32]) -> Sample:
    """Prompt and answer joined, every answer token as the label of the position before it."""
    tokens = np.concatenate([prompt, answer])
    labels = np.full(len(tokens), IGNORED_LABEL, np.int32)
    labels[len(prompt) - 1 : -1] = answer
    return Sample(tokens, labels, np.full(len(tokens), _ORDINARY, np.int32))
