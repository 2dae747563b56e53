"""Time steps as tokens and continuous actions: the material that samples are cut from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.storage.index import DatasetIndex
from data.stream.samples import SampleForm, action_blocks
from data.tokens.action import encode_normalised, normalise
from data.tokens.image_block import write_image_blocks
from data.tokens.state import state_blocks
from data.tokens.vocabulary import ACTION_BLOCK_LENGTH, ACTION_DIM, STATE_BLOCK_LENGTH


@dataclass(frozen=True, slots=True)
class TimeSteps:
    """T time steps; every token id is below 65,536.

    Attributes:
        frames: uint16 [T, V * L], the image blocks of all cameras.
        actions: uint16 [T, 9], action blocks.
        states: uint16 [T, 10], state blocks; [T, 0] where samples hold no state.
        normalised_actions: float32 [T, 7], the same actions, normalised but not quantised.
    """

    frames: NDArray[np.uint16]
    actions: NDArray[np.uint16]
    states: NDArray[np.uint16]
    normalised_actions: NDArray[np.float32]

    @classmethod
    def empty(cls, steps: int, form: SampleForm) -> TimeSteps:
        """Allocate `steps` time steps; the system provides the memory when it is first written."""
        width = STATE_BLOCK_LENGTH if form.state else 0
        return cls(
            np.empty((steps, form.frame), np.uint16),
            np.empty((steps, ACTION_BLOCK_LENGTH), np.uint16),
            np.empty((steps, width), np.uint16),
            np.empty((steps, ACTION_DIM), np.float32),
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
    """

    which: NDArray[np.int64]
    steps: TimeSteps
    positions: NDArray[np.int64]


def tokenise(
    codes: Mapping[str, NDArray[np.uint16]],
    actions: NDArray[np.float64],
    states: NDArray[np.float32],
    index: DatasetIndex,
    config: DataConfig,
    into: TimeSteps,
) -> None:
    """Write T time steps; each time step depends on its own values only.

    Args:
        codes: Camera -> uint16 [T, R, C].
        actions: float64 [T, 7].
        states: float32 [T, 8].
        index: Index of their data set.
        config: Cameras and ranges of states.
        into: T time steps that are overwritten.

    Raises:
        InputError: An action or state is NaN, or a code is not in the vocabulary.
    """
    image = into.frames.shape[1] // len(config.cameras)
    for view, camera in enumerate(config.cameras):
        part = slice(view * image, (view + 1) * image)
        write_image_blocks(codes[camera], index.image.pixels, into.frames[:, part])
    normalised = normalise(actions, index.action_ranges)  # float64: rounded only once its bin is known
    into.actions[:] = action_blocks(encode_normalised(normalised)).reshape(into.actions.shape)
    into.normalised_actions[:] = normalised
    if into.states.shape[1]:
        into.states[:] = state_blocks(states, config.state_ranges.minimum, config.state_ranges.maximum)
