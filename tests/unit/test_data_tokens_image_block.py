"""Image blocks: published layout, round trip, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.errors import InputError
from data.tokens.image_block import image_block, image_block_length, image_codes


def test_layout_is_that_of_the_published_method() -> None:
    block = image_block(np.array([[0, 1], [2, 8191]], np.uint16), pixels=64)
    assert block.tolist() == [8197, 8806, 8806, 4, 5, 8803, 6, 8195, 8803, 8196]


@pytest.mark.parametrize(("rows", "pixels", "length", "grid"), [(16, 256, 276, 8812), (32, 512, 1060, 8820)])
def test_lengths_and_grid_tokens_are_the_published_ones(
    rows: int, pixels: int, length: int, grid: int
) -> None:
    block = image_block(np.zeros((rows, rows), np.uint16), pixels)
    assert len(block) == length == image_block_length(rows, rows)
    assert block[1] == block[2] == grid


def test_height_precedes_width() -> None:
    assert image_block(np.zeros((4, 8), np.uint16), pixels=64)[1:3].tolist() == [8806, 8808]


@given(hnp.arrays(np.uint16, st.tuples(st.just(3), *[st.integers(1, 9)] * 2), elements=st.integers(0, 8191)))
def test_blocks_of_several_frames_are_decoded(codes: np.ndarray) -> None:
    height, width = codes.shape[1:]
    blocks = image_block(codes, pixels=32 * height)
    assert blocks.shape == (3, image_block_length(height, width))
    for block, frame in zip(blocks, codes, strict=True):
        assert np.array_equal(image_codes(block), frame)


def test_codes_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(InputError, match="8192"):
        image_block(np.full((2, 2), 8192, np.uint16), 64)
    with pytest.raises(InputError, match="expected integers"):
        image_block(np.zeros((2, 2)), 64)
    with pytest.raises(InputError, match="multiple of 32"):
        image_block(np.zeros((2, 2), np.uint16), 40)


@pytest.mark.parametrize("position", [0, 3, 5, 8, 9])
def test_a_block_with_a_foreign_token_is_refused(position: int) -> None:
    block = image_block(np.zeros((2, 2), np.uint16), 64)
    block[position] = 10_006
    with pytest.raises(InputError, match="image block"):
        image_codes(block)
