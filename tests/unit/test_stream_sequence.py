"""Samples: equal to the template id by id, labels on the answer only, blocks where actions are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.stream.sequence import (
    WORLD_TEXT,
    action_prompt,
    action_sample,
    action_sample_length,
    action_text,
    world_prompt,
    world_sample,
    world_sample_length,
)
from data.tokens.image_block import image_block
from pretrain.model.mask import dense_mask, mask_from_tokens, mask_vectors

TEXT = [20_000, 20_001, 20_002]
BLOCK_A = image_block(np.array([[0, 1], [2, 8191]], np.uint16), pixels=32)
BLOCK_B = image_block(np.array([[5, 6], [7, 8]], np.uint16), pixels=32)
IDS_A = [8197, 8805, 8805, 4, 5, 8803, 6, 8195, 8803, 8196]
IDS_B = [8197, 8805, 8805, 9, 10, 8803, 11, 12, 8803, 8196]
ACTIONS = np.array([[10006, 10007, 10008, 10009, 10010, 10011, 10261], [10100] * 7])
ACTION_IDS = [
    [10004, 10006, 10007, 10008, 10009, 10010, 10011, 10261, 15004],
    [10004, *[10100] * 7, 15004],
]


def test_action_sample_is_the_template_id_by_id() -> None:
    sample = action_sample(TEXT, [BLOCK_A, BLOCK_B], ACTIONS)
    prompt = [0, *TEXT, *IDS_A, *IDS_B, 8710]
    answer = [*ACTION_IDS[0], *ACTION_IDS[1], 8710]
    assert sample.tokens.tolist() == prompt + answer
    assert sample.labels.tolist() == [-100] * (len(prompt) - 1) + answer + [-100]
    assert sample.blocks.tolist() == [0] * len(prompt) + [1] * 9 + [2] * 9 + [0]
    assert action_prompt(TEXT, [BLOCK_A, BLOCK_B]).tolist() == prompt


def test_world_sample_is_the_template_id_by_id() -> None:
    sample = world_sample(TEXT, BLOCK_A, ACTIONS[0], BLOCK_B)
    before = [0, *TEXT, *IDS_A]
    prompt = [*before, *ACTION_IDS[0], 8710]
    answer = [*IDS_B, 8710]
    assert sample.tokens.tolist() == prompt + answer
    assert sample.labels.tolist() == [-100] * (len(prompt) - 1) + answer + [-100]
    assert sample.blocks.tolist() == [0] * len(before) + [-1] * 9 + [0] * (1 + len(answer))
    assert world_prompt(TEXT, BLOCK_A, ACTIONS[0]).tolist() == prompt


def test_words_are_the_published_ones() -> None:
    assert action_text("lift the cube") == "What action should the robot take to lift the cube?"
    assert WORLD_TEXT == (
        "Generate the next image based on the provided sequence of historical images and "
        "corresponding actions."
    )


def test_arrays_are_int32() -> None:
    for sample in (action_sample(TEXT, [BLOCK_A], ACTIONS), world_sample(TEXT, BLOCK_A, ACTIONS[0], BLOCK_B)):
        assert {sample.tokens.dtype, sample.labels.dtype, sample.blocks.dtype} == {np.dtype(np.int32)}


@pytest.mark.parametrize(("frames", "chunk"), [(1, 1), (2, 5), (3, 10)])
def test_lengths_are_known_without_the_tokens(frames: int, chunk: int) -> None:
    actions = np.full((chunk, 7), 10006)
    sample = action_sample(TEXT, [BLOCK_A] * frames, actions)
    assert len(sample) == action_sample_length(len(TEXT), len(BLOCK_A), frames, chunk)
    world = world_sample(TEXT, BLOCK_A, actions[0], BLOCK_B)
    assert len(world) == world_sample_length(len(TEXT), len(BLOCK_A))


def test_published_lengths_at_256_pixels() -> None:
    block = image_block(np.zeros((16, 16), np.uint16), pixels=256)
    assert len(block) == 276
    assert 615 <= action_sample_length(15, 276, 2, 5) <= 660
    assert world_sample_length(18, 276) == 582


def test_agrees_with_the_rule_on_raw_tokens() -> None:
    for sample in (
        action_sample(TEXT, [BLOCK_A], ACTIONS),
        action_sample(TEXT, [BLOCK_A, BLOCK_B], ACTIONS),
        world_sample(TEXT, BLOCK_A, ACTIONS[0], BLOCK_B),
    ):
        segments, blocks = mask_vectors(sample.tokens)
        np.testing.assert_array_equal(sample.blocks, blocks)
        assert torch.equal(dense_mask(segments, sample.blocks), mask_from_tokens(sample.tokens))
