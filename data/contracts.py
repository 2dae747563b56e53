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

from data.errors import InputError

MAX_ACTION_DIM = 32  # numbers of an action
MAX_STATE_DIM = 64  # numbers of a state
MAX_VARIANTS = 64  # views of an episode beside the recorded one

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
WeightsChoice = Literal["auto", "averaged", "trained"]
"""Weights of a checkpoint: `trained`, `averaged` (their average, `optim.ema`), or `auto`: averaged if any."""


@dataclass(frozen=True, slots=True)
class Embodiment:
    """What the numbers of a robot's actions and states are.

    Attributes:
        name: Short name of the robot and its control (`libero`, `aloha`).
        action: Names of the D numbers of an action, 1 to 32.
        state: Names of the S numbers of a state, at most 64.
        missing: Numbers of the action that this robot does not have, by name (the rotation of an arm that
            cannot turn its hand): 0 in the data, without label and loss, and 0 in what a policy returns.
        control_hz: Actions per second; None: not known.

    Raises:
        InputError: Names that are empty, too many or repeated, or a missing number that is none.
    """

    name: str
    action: tuple[str, ...]
    state: tuple[str, ...]
    missing: tuple[str, ...] = ()
    control_hz: float | None = None

    def __post_init__(self) -> None:
        for what, names, least, most in (
            ("action", self.action, 1, MAX_ACTION_DIM),
            ("state", self.state, 0, MAX_STATE_DIM),
        ):
            if not least <= len(names) <= most:
                raise InputError(
                    f"embodiment {self.name}: {what} of {len(names)} numbers, expected {least} to {most}; "
                    f"leave some out with {what}=[...]"
                )
            if len(set(names)) < len(names) or not all(names):
                raise InputError(
                    f"embodiment {self.name}: names of the {what}'s numbers are {', '.join(names)}, expected "
                    "each once; name them with dimensions=[...]"
                )
        unknown = [name for name in self.missing if name not in self.action]
        if unknown or set(self.missing) == set(self.action):
            raise InputError(
                f"embodiment {self.name}: missing={list(self.missing)}, expected some, not all, of "
                f"{', '.join(self.action)}"
            )

    @property
    def action_dim(self) -> int:
        """D, numbers of an action."""
        return len(self.action)

    @property
    def state_dim(self) -> int:
        """S, numbers of a state."""
        return len(self.state)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which numbers of an action this robot has, bool [D]."""
        return np.array([name not in self.missing for name in self.action])


DEFAULT_EMBODIMENT = Embodiment(
    name="libero",
    action=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    state=("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right"),
    control_hz=20.0,
)
"""WorldVLA's and LIBERO's: delta pose and gripper (-1 open, 1 closed); pose of the hand and fingers."""


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
        actions: float64 [T, D], the numbers of the data set's embodiment. LIBERO's seven: delta position
            (3), delta rotation (3), gripper (-1 open, 1 closed). Not float32: LIBERO's actions lie on the
            edges of bins, and rounding moves some by one bin.
        states: float32 [T, S]. LIBERO's eight: hand position in metres (3), axis-angle of the hand body's
            orientation in radians (3), gripper finger positions in metres (2), in the simulator's world frame
            as LIBERO stores them. The angle is continuous over an episode: it may exceed pi.
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
        variants: The same of the frames under drawn changes of the camera, each a whole view of the episode.
    """

    key: str
    suite: str
    task: str
    instruction: str
    codes: Mapping[str, NDArray[np.uint16]]
    actions: NDArray[np.float64]
    states: NDArray[np.float32]
    variants: tuple[Mapping[str, NDArray[np.uint16]], ...] = ()

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
        action_targets: float32 [N, K, D], the actions of each sample, normalised to -1 to 1 over the ranges
            of its data set but not quantised (`data.tokens.action.normalise`). K and D are the longest chunk
            and the widest action of all data sets; what a sample does not have is 0.
        action_present: bool [N, K, D], the numbers that a sample has.
        sources: int32 [B, M + 1], number of the data set that each segment of a sequence is from, by the
            segment's number; M is the largest one of all sequences of all steps. 0 for padding and beyond a
            sequence's last segment.
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.int32]
    positions: NDArray[np.int32]
    segments: NDArray[np.int32]
    blocks: NDArray[np.int32]
    action_starts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    action_targets: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))
    action_present: NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0, 0), np.bool_))
    sources: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))

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
            self.action_present[begin:end],
            self.sources[part],
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
