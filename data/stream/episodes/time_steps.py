"""Time steps as tokens and continuous actions: the material that samples are cut from.

Frames may be there in several variants: the recorded one first, then those under drawn changes of the camera.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.stream.datasets import StreamDataset
from data.stream.samples import SampleForm, action_blocks
from data.tokens.action import encode_normalised, normalise
from data.tokens.image_block import write_image_blocks
from data.tokens.state import state_blocks


@dataclass(frozen=True, slots=True)
class TimeSteps:
    """T time steps of data sets of one form; every token id is below 65,536.

    Attributes:
        frames: uint16 [T, 1 + N, V * L], the image blocks of all cameras in each of the variants.
        actions: uint16 [T, D + 2], action blocks.
        states: uint16 [T, S + 2], state blocks; [T, 0] where samples hold no state.
        normalised_actions: float32 [T, D], the same actions, normalised but not quantised; 0 where the robot
            does not have a number.
    """

    frames: NDArray[np.uint16]
    actions: NDArray[np.uint16]
    states: NDArray[np.uint16]
    normalised_actions: NDArray[np.float32]

    @classmethod
    def empty(cls, steps: int, form: SampleForm, variants: int = 0) -> TimeSteps:
        """Allocate `steps` time steps; the system provides the memory when it is first written.

        Args:
            steps: T.
            form: Sizes of their samples.
            variants: N, of the frames, beside the recorded ones.
        """
        return cls(
            np.empty((steps, 1 + variants, form.frame), np.uint16),
            np.empty((steps, form.action_block), np.uint16),
            np.empty((steps, form.state_block), np.uint16),
            np.empty((steps, form.action_dim), np.float32),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, each.name).nbytes for each in fields(self))

    def part(self, begin: int, end: int) -> TimeSteps:
        """Time steps `begin` to `end` (exclusive), as views."""
        return TimeSteps(
            self.frames[begin:end],
            self.actions[begin:end],
            self.states[begin:end],
            self.normalised_actions[begin:end],
        )


class LocatedWindows(NamedTuple):
    """Windows whose time steps are in memory.

    Attributes:
        which: int64 [N], numbers of the windows within the request.
        steps: The time steps that they are cut from; valid until the next windows are requested.
        positions: int64 [N], position of time step t of each window in `steps`.
        variants: int64 [N], the variant of `steps.frames` that each window shows.
    """

    which: NDArray[np.int64]
    steps: TimeSteps
    positions: NDArray[np.int64]
    variants: NDArray[np.int64]


def tokenise(
    views: Sequence[Mapping[str, NDArray[np.uint16]]],
    actions: NDArray[np.float64],
    states: NDArray[np.float32],
    dataset: StreamDataset,
    cameras: Sequence[str],
    into: TimeSteps,
) -> None:
    """Write T time steps; each time step depends on its own values only.

    Args:
        views: The codes of each variant of the frames: camera -> uint16 [T, R, C].
        actions: float64 [T, D].
        states: float32 [T, S].
        dataset: Their data set.
        cameras: Cameras of a frame, in this order.
        into: T time steps that are overwritten.

    Raises:
        InputError: An action or state is NaN, or a code is not in the vocabulary.
    """
    source, image = dataset.source, into.frames.shape[2] // len(cameras)
    for variant, codes in enumerate(views):
        for view, camera in enumerate(cameras):
            part = into.frames[:, variant, view * image : (view + 1) * image]
            write_image_blocks(codes[camera], dataset.index.image.pixels, part)
    normalised = normalise(actions, source.action_ranges)  # float64: rounded only once its bin is known
    into.actions[:] = action_blocks(encode_normalised(normalised)).reshape(into.actions.shape)
    into.normalised_actions[:] = normalised
    if source.embodiment.missing:
        into.normalised_actions[:, ~source.embodiment.present] = 0
    if source.state_ranges is not None:
        into.states[:] = state_blocks(states, source.state_ranges.minimum, source.state_ranges.maximum)
