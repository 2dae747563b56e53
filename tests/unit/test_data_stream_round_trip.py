"""Tokens decode to what was encoded; segments are right for samples of any sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.stream.sample_layout import SampleLayout, gaps, write_segments
from data.tokens.action import ACTION_MAX, ACTION_MIN, BIN_WIDTH, decode, encode
from data.tokens.image_block import image_block, image_block_length, image_codes, write_image_blocks
from tests.support.reference_samples import action_sample, world_sample

CODES = st.integers(0, 8191)


@given(
    codes=hnp.arrays(np.uint16, (3, 2, 4, 4), elements=CODES), dtype=st.sampled_from([np.uint16, np.int64])
)
def test_blocks_written_in_place_are_those_of_image_block(codes: np.ndarray, dtype: type) -> None:
    size = image_block_length(4, 4)
    written = np.zeros((3, 2 * size), dtype)
    for view in range(2):
        write_image_blocks(codes[:, view], 64, written[:, view * size : (view + 1) * size])
    assert np.array_equal(written.reshape(3, 2, size), image_block(codes, 64))


def test_small_types_do_not_overflow() -> None:
    codes = np.full((1, 2, 2), 255, np.uint8)
    assert (image_codes(image_block(codes, 32)[0]) == 255).all()


@given(
    codes=hnp.arrays(np.uint16, (2, 4, 4), elements=CODES),
    places=hnp.arrays(np.float64, (3, 7), elements=st.floats(0, 1)),
    words=st.lists(st.integers(16_384, 65_535), min_size=1, max_size=9),
)
@settings(deadline=None)
def test_frames_and_actions_are_decoded_from_samples(
    codes: np.ndarray, places: np.ndarray, words: list[int]
) -> None:
    low, high = np.array(ACTION_MIN), np.array(ACTION_MAX)
    actions = low + places * (high - low)
    blocks, bins, size = image_block(codes, 64), encode(actions), image_block_length(4, 4)
    action, world = (
        action_sample(words, list(blocks), bins),
        world_sample(words, blocks[0], bins[0], blocks[1]),
    )
    begin = 1 + len(words)
    for frame in range(2):
        block = action.tokens[begin + frame * size : begin + (frame + 1) * size]
        assert np.array_equal(image_codes(block), codes[frame])
    answer = action.tokens[begin + 2 * size + 1 : -1].reshape(3, 9)
    found = decode(answer[:, 1:8])
    assert (np.abs(found - actions) <= (high - low) * (BIN_WIDTH / 2) * 0.5 + 1e-6).all()
    assert np.array_equal(image_codes(world.tokens[begin : begin + size]), codes[0])
    assert np.array_equal(image_codes(world.tokens[-size - 1 : -1]), codes[1])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5), st.booleans()), min_size=1, max_size=20)
)
@settings(deadline=None)
def test_segments_of_samples_of_any_sizes(sizes: list[tuple[int, int, bool]]) -> None:
    starts, ends, at = [], [], 0
    for size, gap, _ in sizes:
        starts.append(at + gap)
        ends.append(at := at + gap + size)
    total = at + 3
    borders = np.array([starts, starts, starts, ends], np.int64)
    worlds, ones = np.array([world for *_, world in sizes]), np.ones(len(sizes), np.int64)
    layout = SampleLayout(worlds, 0 * ones, ones, ones, np.arange(1, len(sizes) + 1), borders)
    segments, positions = np.full((2, total), -1, np.int32)
    write_segments(segments, positions, layout)
    expected = np.full((2, total), -1)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        expected[0, start:end], expected[1, start:end] = number, np.arange(end - start)
    assert np.array_equal(np.stack([segments, positions]), expected)
    assert np.array_equal(gaps(layout, total), np.flatnonzero(expected[0] < 0))


@pytest.mark.parametrize("total", [0, 5])
def test_everything_is_padding_without_samples(total: int) -> None:
    nothing = np.empty(0, np.int64)
    borders = np.empty((4, 0), np.int64)
    layout = SampleLayout(nothing.astype(bool), nothing, nothing, nothing, nothing, borders)
    segments, positions = np.full((2, total), -1, np.int32)
    write_segments(segments, positions, layout)
    assert (segments == -1).all()
    assert gaps(layout, total).tolist() == list(range(total))
