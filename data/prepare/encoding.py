"""A demonstration as an episode: without no-ops, frames resized and encoded, also under changed cameras."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.config import PrepareConfig
from data.contracts import Demonstration, Episode
from data.errors import InputError
from data.prepare.camera_changes import blur_frames, change_colours, change_view, draw_change
from data.prepare.frames import fit_frames
from data.prepare.index_builder import FrameFormat
from data.prepare.screening import no_movement
from data.sources.no_ops import DEFAULT_RULE, NoOpRule, moving_steps

Frames = NDArray[np.uint8]


class FrameEncoder(FrameFormat, Protocol):
    """An image tokenizer as `prepare` uses it (`data.tokens.image.ImageTokenizer` is one)."""

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Frames uint8 [N, H, W, 3] -> codes uint16 [N, R, C]."""
        ...


def encode_demonstration(
    demonstration: Demonstration,
    tokenizer: FrameEncoder,
    config: PrepareConfig,
    no_ops: NoOpRule = DEFAULT_RULE,
) -> Episode:
    """Drop no-ops, resize the frames of every camera and encode them, `config.batch_size` at a time.

    They are encoded `config.variants` more times, each under a drawn change of each camera.

    Raises:
        InputError: No step of the demonstration moves the robot.
    """
    moving = moving_steps(demonstration.actions, no_ops)
    if not moving.any():
        raise InputError(no_movement(demonstration.key, len(moving)))
    views: list[dict[str, NDArray[np.uint16]]] = [{} for _ in range(1 + config.variants)]
    for camera, frames in demonstration.frames.items():
        kept = frames[moving]
        for variant, codes in enumerate(views):
            batches = (
                changed_frames(kept, demonstration.key, camera, variant, tokenizer.pixels, config)
                if variant
                else _recorded_frames(kept, tokenizer.pixels, config)
            )
            codes[camera] = np.concatenate([tokenizer.encode(batch) for batch in batches])
    return Episode(
        key=demonstration.key,
        suite=demonstration.suite,
        task=demonstration.task,
        instruction=demonstration.instruction,
        codes=views[0],
        actions=demonstration.actions[moving],
        states=demonstration.states[moving],
        variants=tuple[Mapping[str, NDArray[np.uint16]], ...](views[1:]),
    )


def changed_frames(
    frames: Frames, key: str, camera: str, variant: int, pixels: int, config: PrepareConfig
) -> Iterator[Frames]:
    """The frames of a camera as a variant shows them, `config.batch_size` at a time.

    The view changes at the recorded size, before frames are made square and resized: there it loses least,
    and what enters beside a cropped square is the recorded picture. Blur, colours and noise change the
    resized frames: they mean the same whatever the recorded size, and resizing takes no noise away.

    Args:
        frames: uint8 [T, H, W, 3], as recorded, without no-ops.
        key: Of the episode.
        camera: Name of the camera.
        variant: From 1.
        pixels: Side of the result.
        config: How frames are made square and resized, and the strengths of the changes.
    """
    change = draw_change(config.augmentation, key, camera, variant)
    for first in range(0, len(frames), config.batch_size):
        batch = change_view(frames[first : first + config.batch_size], change)
        batch = fit_frames(batch, pixels, config.fit, config.resize)
        yield change_colours(blur_frames(batch, change), change, first)


def _recorded_frames(frames: Frames, pixels: int, config: PrepareConfig) -> Iterator[Frames]:
    for first in range(0, len(frames), config.batch_size):
        yield fit_frames(frames[first : first + config.batch_size], pixels, config.fit, config.resize)
