"""Samples: equal to the template id by id, labels on the answer only, blocks where actions are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.stream.samples import SampleForm, action_prompt, world_prompt
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT, action_text
from data.tokens.state import STATE_MAX, STATE_MIN, check_state_ranges, state_blocks
from pretrain.model.mask import dense_mask, mask_from_tokens, mask_vectors
from tests.support.reference_samples import action_sample, world_sample

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
STATE = [15504, *range(15506, 15514), 16004]


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
    assert len(sample) == SampleForm(len(BLOCK_A), history=frames, chunk=chunk).action_length(len(TEXT))
    world = world_sample(TEXT, BLOCK_A, actions[0], BLOCK_B)
    assert len(world) == SampleForm(len(BLOCK_A)).world_length(len(TEXT))


def test_published_lengths_at_256_pixels() -> None:
    block = image_block(np.zeros((16, 16), np.uint16), pixels=256)
    assert len(block) == 276
    assert 615 <= SampleForm(276).action_length(15) <= 660
    assert SampleForm(276).world_length(18) == 582


def test_blocks_agree_with_the_mask_of_raw_tokens() -> None:
    for sample in (
        action_sample(TEXT, [BLOCK_A], ACTIONS),
        action_sample(TEXT, [BLOCK_A, BLOCK_B], ACTIONS),
        world_sample(TEXT, BLOCK_A, ACTIONS[0], BLOCK_B),
        action_sample(TEXT, [[BLOCK_A, BLOCK_B]] * 2, ACTIONS, STATE),
        world_sample(TEXT, [BLOCK_A, BLOCK_B], ACTIONS, [[BLOCK_B, BLOCK_A]] * 2),
    ):
        segments, blocks = mask_vectors(sample.tokens)
        np.testing.assert_array_equal(sample.blocks, blocks)
        assert torch.equal(dense_mask(segments, sample.blocks), mask_from_tokens(sample.tokens))


def test_state_cameras_and_several_frames_are_in_the_documented_order() -> None:
    sample = action_sample(TEXT, [[BLOCK_A, BLOCK_B]], ACTIONS, STATE)
    prompt = [0, *TEXT, *STATE, *IDS_A, *IDS_B, 8710]
    assert sample.tokens.tolist() == [*prompt, *ACTION_IDS[0], *ACTION_IDS[1], 8710]
    world = world_sample(TEXT, [BLOCK_A, BLOCK_B], ACTIONS, [[BLOCK_B, BLOCK_A], [BLOCK_A, BLOCK_A]])
    before = [0, *TEXT, *IDS_A, *IDS_B]
    answer = [*IDS_B, *IDS_A, *IDS_A, *IDS_A, 8710]
    assert world.tokens.tolist() == [*before, *ACTION_IDS[0], *ACTION_IDS[1], 8710, *answer]
    assert world.blocks.tolist() == [0] * len(before) + [-1] * 9 + [-2] * 9 + [0] * (1 + len(answer))
    form = SampleForm(len(BLOCK_A), views=2, history=1, chunk=2, predicted=2, state_dim=8)
    assert (form.action_length(3), form.world_length(3)) == (len(sample), len(world))


def test_states_have_the_ids_of_rynnvla() -> None:
    low, high = np.array(STATE_MIN), np.array(STATE_MAX)
    blocks = state_blocks(np.stack([low, high, low - 1, (low + high) / 2]), STATE_MIN, STATE_MAX)
    assert blocks[0].tolist() == [15504, *[15506] * 8, 16004]
    assert blocks[2].tolist() == blocks[0].tolist()
    assert ((blocks[1, 1:-1] >= 15760) & (blocks[1, 1:-1] <= 15761)).all()
    assert ((blocks[3, 1:-1] >= 15632) & (blocks[3, 1:-1] <= 15634)).all()
    with pytest.raises(InputError, match="a state is no number"):
        state_blocks(np.full((1, 8), np.nan), STATE_MIN, STATE_MAX)
    with pytest.raises(InputError, match="each minimum below its maximum"):
        check_state_ranges(STATE_MAX, STATE_MIN)
