"""Drawn changes of the camera: on arrays that are written out, nothing at strength 0, one draw an episode."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from data.augmentation_config import AugmentationConfig
from data.errors import InputError
from data.prepare.camera_changes import (
    REFERENCE_PIXELS,
    CameraChange,
    Frames,
    blur_frames,
    change_colours,
    change_view,
    draw_change,
)

NOTHING = AugmentationConfig(**dict.fromkeys(AugmentationConfig().numbers(), 0))


def grey(rows: list[list[int]]) -> Frames:
    """One frame uint8 [1, H, W, 3] of these values in every channel."""
    return np.repeat(np.array(rows, np.uint8)[np.newaxis, ..., np.newaxis], 3, axis=-1)


def colour(*values: int) -> Frames:
    """Two frames uint8 [2, 4, 4, 3] of one colour."""
    return np.full((2, 4, 4, 3), values, np.uint8)


def random_frames(count: int = 3, height: int = 12, width: int = 16) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("change", [CameraChange(), draw_change(NOTHING, "lift/demo_0", "agent", 1)])
def test_nothing_changes_at_strength_0(change: CameraChange) -> None:
    frames = random_frames()
    for step in (change_view, blur_frames, change_colours):
        assert np.array_equal(step(frames, change), frames)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (CameraChange(right=1 / 4), [[2, 3, 4, 4], [6, 7, 8, 8], [10, 11, 12, 12], [14, 15, 16, 16]]),
        (CameraChange(down=-1 / 4), [[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]),
        (CameraChange(angle=math.pi / 2), [[13, 9, 5, 1], [14, 10, 6, 2], [15, 11, 7, 3], [16, 12, 8, 4]]),
    ],
    ids=["right", "up", "a quarter turn"],
)
def test_views_of_whole_pixels_are_exact(change: CameraChange, expected: list[list[int]]) -> None:
    frame = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    assert np.array_equal(change_view(grey(frame), change), grey(expected))


def test_a_smaller_part_is_enlarged_and_a_larger_one_repeats_the_edges() -> None:
    frame = np.zeros((1, 16, 24, 3), np.uint8)
    frame[:, :, 12:] = 200
    right_half = change_view(frame, CameraChange(scale=0.5, right=0.25))
    assert (right_half[:, :, 3:] == 200).all()  # the first columns interpolate over the border between halves
    frame[:, 4:12, 6:18] = 90
    assert (change_view(frame, CameraChange(scale=0.25)) == 90).all()
    whole = change_view(frame, CameraChange(scale=2.0))
    assert whole.shape == frame.shape
    assert (whole[:, :, :5] == 0).all()
    assert (whole[:, :, -5:] == 200).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (CameraChange(brightness=0.5), (50, 25, 0)),
        (CameraChange(brightness=4.0), (255, 200, 0)),
        (CameraChange(contrast=0.5), (114, 89, 64)),  # 127.5 + half of the distance from it
        (CameraChange(saturation=0.0), (59, 59, 59)),  # 0.299 * 100 + 0.587 * 50
        (CameraChange(hue=2 * math.pi / 3), (0, 100, 50)),  # red becomes green
        (CameraChange(brightness=0.5, contrast=0.0), (128, 128, 128)),
    ],
)
def test_colours_change_by_the_formula(change: CameraChange, expected: tuple[int, int, int]) -> None:
    assert np.array_equal(change_colours(colour(100, 50, 0), change), colour(*expected))


def test_a_grey_pixel_keeps_its_colour_whatever_hue_and_saturation() -> None:
    frames = colour(80, 80, 80)
    assert np.array_equal(change_colours(frames, CameraChange(hue=1.0, saturation=1.7)), frames)


def test_motion_is_the_mean_along_a_line() -> None:
    frame = np.zeros((1, 8, 8, 3), np.uint8)
    frame[0, 4, 4] = 90
    per_pixel = REFERENCE_PIXELS / 8
    across = blur_frames(frame, CameraChange(motion=2 * per_pixel))
    assert across[0, 4, :, 0].tolist() == [0, 0, 0, 30, 30, 30, 0, 0]
    assert across.sum() == 3 * 90
    along = blur_frames(frame, CameraChange(motion=2 * per_pixel, direction=math.pi / 2))
    assert np.array_equal(along, across.transpose(0, 2, 1, 3))


def test_a_blur_spreads_a_point_evenly_and_leaves_one_colour_alone() -> None:
    frame = np.zeros((2, 33, 33, 3), np.uint8)
    frame[:, 16, 16] = 255
    blurred = blur_frames(frame, CameraChange(blur=1.5 * REFERENCE_PIXELS / 33)).astype(int)
    for mirrored in (blurred[:, ::-1], blurred[:, :, ::-1], blurred.transpose(0, 2, 1, 3)):
        assert np.abs(blurred - mirrored).max() <= 2  # rows and columns are rounded one after the other
    rows = np.arange(33) - 16
    spread = (blurred[0, :, :, 0] * rows[:, None] ** 2).sum() / blurred[0, :, :, 0].sum()
    assert spread == pytest.approx(1.5**2, rel=0.3)  # of 8-bit values
    assert np.array_equal(blur_frames(colour(9, 99, 200), CameraChange(blur=300.0)), colour(9, 99, 200))


def test_noise_is_fresh_in_every_frame_whatever_the_batches() -> None:
    frames = np.full((6, 32, 32, 3), 128, np.uint8)
    change = CameraChange(noise=0.05, seed=7)
    noisy = change_colours(frames, change)
    assert (noisy - 128.0).std() == pytest.approx(0.05 * 255, rel=0.03)
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.1
    parts = [change_colours(frames[at : at + 2], change, at) for at in range(0, 6, 2)]
    assert np.array_equal(np.concatenate(parts), noisy)
    assert not np.array_equal(change_colours(frames, replace(change, seed=8)), noisy)


def test_a_draw_depends_on_seed_key_camera_and_variant() -> None:
    settings = AugmentationConfig()
    first = draw_change(settings, "a/demo_0", "agent", 1)
    assert draw_change(settings, "a/demo_0", "agent", 1) == first
    others = [
        draw_change(replace(settings, seed=1), "a/demo_0", "agent", 1),
        draw_change(settings, "a/demo_1", "agent", 1),
        draw_change(settings, "a/demo_0", "wrist", 1),
        draw_change(settings, "a/demo_0", "agent", 2),
    ]
    values = [tuple(asdict(draw).values()) for draw in (first, *others)]
    assert all(len(set(column)) == len(values) for column in zip(*values, strict=True))


def test_draws_fill_their_bounds_and_are_independent_of_other_strengths() -> None:
    settings = AugmentationConfig(
        crop=0, shift=0.2, rotation=10, zoom=0.25, brightness=0.5, blur=4, noise=0.1
    )
    draws = [draw_change(settings, f"demo_{number}", "agent", 1) for number in range(400)]
    for name, low, high in (
        ("scale", 1 / 1.25, 1.25),
        ("angle", -math.radians(10), math.radians(10)),
        ("right", -0.2, 0.2),
        ("down", -0.2, 0.2),
        ("brightness", 0.5, 1.5),
        ("blur", 0, 4),
        ("noise", 0, 0.1),
    ):
        found = np.array([getattr(draw, name) for draw in draws])
        near = 0.05 * (high - low)
        assert low <= found.min() < low + near, name
        assert high - near < found.max() <= high, name
    other = draw_change(replace(settings, blur=0, zoom=0, noise=0), "demo_0", "agent", 1)
    assert other == replace(draws[0], scale=1.0, blur=0, noise=0)
    cropped = [draw_change(replace(NOTHING, crop=0.3), f"demo_{number}", "agent", 1) for number in range(400)]
    for draw in cropped:  # what is seen lies within the recorded picture
        assert 0.7 <= draw.scale <= 1
        assert abs(draw.right) <= (1 - draw.scale) / 2 + 1e-12
        assert abs(draw.down) <= (1 - draw.scale) / 2 + 1e-12
    assert min(draw.scale for draw in cropped) < 0.72


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (AugmentationConfig(crop=0.6), r"augmentation.crop is 0.6, expected 0 to 0.5"),
        (AugmentationConfig(rotation=-1), r"augmentation.rotation is -1, expected 0 to 45"),
        (AugmentationConfig(noise=math.nan), r"augmentation.noise is nan"),
        (AugmentationConfig(seed=-1), r"augmentation.seed is -1"),
        (NOTHING, r"every strength is 0, so variants would be copies"),
    ],
)
def test_impossible_strengths_are_refused(settings: AugmentationConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings.check()
