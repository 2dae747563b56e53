"""Types that pass between the packages of `data`, with shapes and dtypes.

Legend of the shape letters: T time steps, H W pixels, R C rows and columns of image codes,
B sequences of a micro-batch, S tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AGENT_CAMERA = "agent"
WRIST_CAMERA = "wrist"

Compression = Literal["none", "zstd"]
"""Compression of the members of each episode in a shard."""

SplitOrder = Literal["number", "letters"]
"""Order of a task's demonstrations, the last tenth of which is held out; by `letters`, 10 is before 2."""

Resize = Literal["box_bicubic", "lanczos"]
"""How frames are brought to the resolution: halved by box filter, then bicubic (WorldVLA), or Lanczos."""

Decoder = Literal["discrete", "continuous"]
"""How a policy decides on actions: on their tokens, or by the action head (RynnVLA-002)."""


@dataclass(frozen=True, slots=True)
class Embodiment:
    """What the numbers of a data set's actions and states mean.

    Attributes:
        name: Name of the robot and its control.
        action: Names of the action's numbers, 1 to 32.
        state: Names of the state's numbers, 0 to 64.
        missing: Dimensions of the action that this robot does not have, written as 0.
        control_hz: Steps a second; None: unknown.
    """

    name: str
    action: tuple[str, ...]
    state: tuple[str, ...]
    missing: tuple[str, ...] = ()
    control_hz: float | None = None


DEFAULT_EMBODIMENT = Embodiment(
    "libero",
    ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    ("x", "y", "z", "axis_x", "axis_y", "axis_z", "finger_left", "finger_right"),
)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One recorded trajectory before tokenisation.

    Attributes:
        key: Unique within its data set, stable across machines (``"<file stem>/demo_3"``).
        suite: Task suite, for example ``"robosuite_lift"`` or ``"libero_object"``.
        task: Task identifier within the suite.
        instruction: Language instruction, lower-case plain English.
        frames: Camera name -> uint8 [T, H, W, 3], RGB, already upright (rotated by 180 degrees where
            the simulator delivers frames upside down).
        actions: float64 [T, 7]: delta position (3), delta rotation (3), gripper (-1 open, 1 closed). Not
            float32: LIBERO's actions lie on the edges of bins, and rounding moves some by one bin.
        states: float32 [T, 8]: hand position in metres (3), axis-angle of the hand body's orientation in
            radians (3), gripper finger positions in metres (2), in the simulator's world frame as LIBERO
            stores them. The angle is continuous over an episode: it may exceed pi.
    """

    key: str
    suite: str
    task: str
    instruction: str
    frames: Mapping[str, NDArray[np.uint8]]
    actions: NDArray[np.float64]
    states: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Episode:
    """One trajectory as stored in a shard: frames replaced by VQ-GAN codes.

    Attributes:
        key, suite, task, instruction, actions, states: As in `Demonstration`.
        codes: Camera name -> uint16 [T, R, C], values in ``[0, codebook size)``.
    """

    key: str
    suite: str
    task: str
    instruction: str
    codes: Mapping[str, NDArray[np.uint16]]
    actions: NDArray[np.float64]
    states: NDArray[np.float32]

    @property
    def length(self) -> int:
        """Number of time steps T."""
        return int(self.actions.shape[0])


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch of one data-parallel rank: several samples packed into each sequence.

    The arrays of tokens are int32 [B, S]; those of actions have a row for each of the N action samples, in
    the order of their places.

    Attributes:
        tokens: Token ids; `PADDING` after the last sample.
        labels: Target of the output at this position, already shifted by one
            (``labels[s] == tokens[s + 1]`` inside an answer); `IGNORED_LABEL` elsewhere.
        positions: Position of the token within its own sample, from 0 (rotary embedding).
        segments: 0 for padding, else the number of the sample within the sequence, from 1.
        blocks: Action block id within the sample: 0 for ordinary tokens (text, images, state, end of
            turn); j > 0 for the j-th answer block (starts after the sample's last image); -j for the j-th
            block before it. A token of block j > 0 does not see any other action block (see
            `pretrain.model.mask`).
        action_starts: int64 [N], place of each action sample's first ACTION_START in the B * S tokens laid
            end to end; the prompt of the sample ends before it.
        action_targets: float32 [N, K, 7], the actions of each sample, normalised to -1 to 1 over the ranges
            of the data set but not quantised (`data.tokens.action.normalise`).
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.int32]
    positions: NDArray[np.int32]
    segments: NDArray[np.int32]
    blocks: NDArray[np.int32]
    action_starts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    action_targets: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))

    def rows(self, first: int, last: int) -> PackedBatch:
        """Sequences `first` to `last` (exclusive, cut at B); their tokens are views."""
        part, length = slice(first, last), self.tokens.shape[1]
        begin, end = np.searchsorted(self.action_starts, [first * length, last * length])
        return PackedBatch(
            self.tokens[part],
            self.labels[part],
            self.positions[part],
            self.segments[part],
            self.blocks[part],
            self.action_starts[begin:end] - first * length,
            self.action_targets[begin:end],
        )


@dataclass(frozen=True, slots=True)
class Statistics:
    """Per-dimension summary; units are those of the values. `q01` and `q99` are percentiles 1 and 99."""

    count: int
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
