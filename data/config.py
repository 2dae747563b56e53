"""Settings of the token stream, of `worldvla prepare` and of `worldvla convert samples`.

A default that belongs to a component (pauses of requests, ranges of states) stands in that component.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.augmentation_config import AugmentationConfig
from data.contracts import AGENT_CAMERA, WRIST_CAMERA, Compression, Resize, SplitOrder
from data.storage.retries import RETRY_SECONDS
from data.tokens.action import NamedRanges
from data.tokens.state import STATE_MAX, STATE_MIN

Format = Literal["libero", "lerobot", "rlds"]
Fit = Literal["refuse", "crop", "pad", "stretch"]
TrainingSplit = Literal["train", "all"]
Ranges = Literal["worldvla", "rynnvla", "extremes", "quantiles"]
MeasuredRanges = Literal["extremes", "quantiles"]
SeveralInstructions = Literal["refuse", "first", "last"]


@dataclass
class MixtureConfig:
    """Relative weights of the two kinds of sample (WorldVLA: about 1 : 1 per frame)."""

    action: float = 1.0
    world: float = 1.0


@dataclass
class MixtureSource:
    """One of several data sets of a training.

    Attributes:
        url: Folder or object-store prefix that holds its index and shards.
        weight: Its share of every step's samples, relative to the other weights; null: what its recipe
            proposed when it was prepared, else 1.
        chunk: K, actions that an action sample of it predicts; null: `data.chunk`.
    """

    url: str = "???"
    weight: float | None = None
    chunk: int | None = None


@dataclass
class StateRangesConfig:
    """Ranges that the eight numbers of LIBERO's states are quantised over; values outside are clipped.

    Attributes:
        minimum, maximum: Position (3, metres), axis-angle (3, radians), fingers (2, metres). The defaults
            are RynnVLA-002's for LIBERO.
    """

    minimum: list[float] = field(default_factory=lambda: list(STATE_MIN))
    maximum: list[float] = field(default_factory=lambda: list(STATE_MAX))


@dataclass
class CacheConfig:
    """Episodes on the local disk, shared by all processes of a node.

    Attributes:
        dir: Its folder; null: no cache.
        size: Largest number of bytes in it, such as `200GB`; the least recently used episodes are removed
            first.
    """

    dir: str | None = None
    size: str = "100GB"


@dataclass
class DataConfig:
    """Where the shards are and how samples are cut from episodes. A change does not need another `prepare`.

    Attributes:
        url: Folder or object-store prefix that holds the index and the shards.
        sources: Several data sets instead of one, each with its weight.
        split: Episodes that are trained on: `train`, or `all`, held-out ones too, as published policies are
            (one trained on `train` has never seen a tenth of the tasks that it is tested on). World-model
            scores and validation need `train`.
        history: M, frames an action sample sees (t-M+1 .. t; fewer at an episode's start).
        chunk: K, actions an action sample predicts; only windows with all K are used.
        predicted_frames: P, frames a world sample predicts (t+1 .. t+P) from frame t and the actions between.
        cameras: Cameras whose frames are used, in this order at every time step (RynnVLA-002: agent, then
            wrist); world samples predict all of them.
        state: Whether an action sample holds the robot's state at time t, before its frames.
        state_ranges: How states are quantised.
        mixture: Shares of action and world samples.
        text_tokenizer: Path of a Chameleon `tokenizer.json`; null: the small one of the package.
        image_tokenizer: The VQ-GAN weights that the shards were prepared with; null: those of the package.
            They are copied into the run folder, for the policy.
        variants: Number of views of every episode under drawn changes of the camera (`worldvla prepare
            variants=`) that a window may show instead of the recorded one; 0: recorded frames only.
        memory_megabytes: Size of the tokenised episodes in memory of one process; the first read are removed
            first.
        prefetch: Number of steps prepared ahead of the current one.
        readers: Number of episodes fetched at the same time.
        cache: Episodes on the local disk.
        retry_seconds: How long a failed request to an object store is retried.
        skip_bad_episodes: Number of episodes of a split that may be missing or damaged; their samples become
            padding.
    """

    url: str = field(default="???", metadata={"or": "sources"})
    sources: list[MixtureSource] = field(default_factory=list[MixtureSource])
    split: TrainingSplit = "train"
    history: int = 2
    chunk: int = 5
    predicted_frames: int = 1
    cameras: list[str] = field(default_factory=lambda: [AGENT_CAMERA])
    state: bool = False
    state_ranges: StateRangesConfig = field(default_factory=StateRangesConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    text_tokenizer: str | None = None
    image_tokenizer: str | None = None
    variants: int = 0
    memory_megabytes: int = 512
    prefetch: int = 1
    readers: int = 8
    cache: CacheConfig = field(default_factory=CacheConfig)
    retry_seconds: float = RETRY_SECONDS
    skip_bad_episodes: int = 0


@dataclass
class CameraNames:
    """Names of the cameras in a data set; `{agent: observation.images.image}` selects one camera.

    Attributes:
        agent: The third-person camera; null (and `wrist` null): the usual names of the format.
        wrist: The camera on the wrist.
    """

    agent: str | None = None
    wrist: str | None = None

    def requested(self) -> dict[str, str]:
        """Our camera -> name in the data set; empty: the usual names."""
        names = {AGENT_CAMERA: self.agent, WRIST_CAMERA: self.wrist}
        return {camera: name for camera, name in names.items() if name is not None}


@dataclass
class SourceConfig:
    """Where demonstrations are and how their parts are named.

    Attributes:
        source: Folder (or file) of demonstrations.
        cameras: Cameras to read.
        format: `libero` (HDF5 files, also what `worldvla collect` writes), `lerobot` (v2.0, v2.1 or v3.0) or
            `rlds` (TFRecord files of TensorFlow Datasets); null: detected from the files.
        action: Names of the numbers that together are the action (7: delta pose 6, gripper), in this order;
            null: the usual name.
        state: Names of the numbers that together are the state (position 3, axis-angle 3, fingers 2), in
            this order; null: the usual name; `[]`: no state, zeros instead.
        instruction: Name of the instruction, in each step or (`episode_metadata/...`) once (RLDS only); null:
            the usual name.
        several_instructions: Of an episode with several instructions, subtasks for instance: `refuse` it, or
            take the `first` or the `last` one for all of it.
        skip_bad: Demonstrations that may be left out because they cannot be used (numbers that are not
            finite, no movement, no instruction, damaged): a number, or below 1 a share of all.
        rotate: Rotate frames by 180 degrees; null: as the format defines (LIBERO's HDF5 files), else no.
        fit: How frames become square: `crop` (their middle), `pad` (black), `stretch`, or `refuse` (an
            error).
        resize: How frames of another size are brought to the resolution: `box_bicubic`, as the published code
            does (halved by a box filter while at least twice as large, then bicubic), or `lanczos`.
    """

    source: str = "???"
    format: Format | None = None
    cameras: CameraNames = field(default_factory=CameraNames)
    action: list[str] | None = None
    state: list[str] | None = None
    instruction: str | None = None
    several_instructions: SeveralInstructions = "refuse"
    skip_bad: float = 0.0
    rotate: bool | None = None
    fit: Fit = "refuse"
    resize: Resize = "box_bicubic"


@dataclass
class PrepareConfig(SourceConfig):
    """Settings of `worldvla prepare`.

    Attributes:
        out: Folder or URL that receives shards and index.
        resolution: Side in pixels that frames are resized to.
        image_tokenizer: VQ-GAN weights (safetensors); null: the small one of the package.
        shard_megabytes: Largest shard (before compression). A shard is also the unit of work of a worker
            and of resuming after an interruption.
        compression: Of the members of each episode: `none` or `zstd`.
        batch_size: Frames encoded at once.
        replay: Replay each demonstration in its simulator, record frames and states there, and keep only the
            demonstrations that succeed (LIBERO's own and collected ones).
        split_order: Order of a task's demonstrations, of which the last tenth is held out: by `letters`
            (demo_10 before demo_2), as in the published lists, or by `number`; null: `letters` for LIBERO's
            layout, else `number`.
        ranges: Ranges over which actions are quantised: `worldvla` or `rynnvla` (of LIBERO's seven numbers),
            or those of this data set's training actions: `extremes` (minimum and maximum) or `quantiles` (1 %
            and 99 %); null: `worldvla` for LIBERO's seven numbers, else `quantiles`.
        action_minimum, action_maximum: Explicit ranges, D numbers each; they take precedence over `ranges`.
        state_ranges: Ranges over which states are quantised: `extremes` or `quantiles` of this data set's
            training states; null: `extremes`, but for LIBERO's eight numbers those of `data.state_ranges`.
        state_minimum, state_maximum: Explicit ranges, S numbers each; they take precedence.
        variants: How many more times each episode is encoded, each under drawn changes of its cameras.
        augmentation: How strong these changes are.
    """

    out: str = "???"
    resolution: int = 64
    image_tokenizer: str | None = None
    shard_megabytes: float = 64.0
    compression: Compression = "none"
    batch_size: int = 64
    replay: bool = False
    split_order: SplitOrder | None = None
    ranges: Ranges | None = None
    action_minimum: list[float] | None = None
    action_maximum: list[float] | None = None
    state_ranges: MeasuredRanges | None = None
    state_minimum: list[float] | None = None
    state_maximum: list[float] | None = None
    variants: int = 0
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass
class ConvertSamplesConfig:
    """Settings of `worldvla convert samples`.

    Attributes:
        source: Folder with the published samples of WorldVLA or RynnVLA-002 (`*.pkl`, action and world
            samples of the same demonstrations); the numbers in their names follow time.
        out: Folder or URL that receives shards and index.
        suite: Name of their task suite.
        image_tokenizer: The VQ-GAN weights that encoded them (safetensors).
        pixels: Side of their frames; null: that of the image tokenizer's file.
        text_tokenizer: The `tokenizer.json` that encoded them (Chameleon's).
        ranges: Ranges over which the actions of action samples were quantised: `worldvla` or `rynnvla`.
        world_ranges: The same for world samples; null: as `ranges`. RynnVLA-002's published ones have
            `worldvla`, its action samples `rynnvla`; actions are then those of the action samples.
        state_ranges: Ranges over which states were quantised, if the samples hold states.
        shard_megabytes: Largest shard, after compression.
        compression: Of the members of each episode: `none` or `zstd`.
    """

    source: str = "???"
    out: str = "???"
    suite: str = "???"
    image_tokenizer: str | None = None
    pixels: int | None = None
    text_tokenizer: str | None = None
    ranges: NamedRanges = "worldvla"
    world_ranges: NamedRanges | None = None
    state_ranges: StateRangesConfig = field(default_factory=StateRangesConfig)
    shard_megabytes: float = 64.0
    compression: Compression = "none"
