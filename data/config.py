"""Settings of the token stream, of `worldvla prepare` and of `worldvla convert samples`.

A default that belongs to a component (pauses of requests, ranges of states) stands in that component.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.augmentation_config import AugmentationConfig
from data.contracts import AGENT_CAMERA, WRIST_CAMERA, Compression, Resize, SplitOrder
from data.recipe_settings import KeepRangesConfig, Part, SuccessConfig
from data.storage.retries import RETRY_SECONDS
from data.tokens.action import NamedRanges
from data.tokens.state import STATE_MAX, STATE_MIN

Format = Literal["libero", "lerobot", "rlds", "webdataset"]
Fit = Literal["refuse", "crop", "pad", "stretch"]
TrainingSplit = Literal["train", "all"]
Ranges = Literal["worldvla", "rynnvla", "extremes", "quantiles"]
MeasuredRanges = Literal["extremes", "quantiles"]
SeveralInstructions = Literal["refuse", "first", "last", "draw", "cut"]
NoOps = Literal["motion", "change", "keep"]
DropFirst = Literal["never", "zero", "always"]
Shuffle = Literal["auto", "full", "local"]


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
    """Episodes on the local disk, or in memory, shared by all processes of a node.

    Attributes:
        dir: Its folder; null: none on a disk.
        size: Largest number of bytes in it, such as `200GB`; the least recently used episodes are removed
            first.
        shared_memory: Whether, without a folder, several ranks of a node that read an object store share
            episodes in `/dev/shm`: an eighth of its free space, 4 GiB at most.
    """

    dir: str | None = None
    size: str = "100GB"
    shared_memory: bool = True


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
        shuffle: Order of the windows: `full`, each drawn from all episodes; `local`, each place of a sequence
            from a few episodes at a time, so that an episode is read about once an epoch; `auto`: `full` for
            data sets that are small once tokenised.
        shuffle_episodes: Episodes that a place draws from at a time, where the order is `local`.
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
    shuffle: Shuffle = "auto"
    shuffle_episodes: int = 32
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
class SpoolConfig:
    """Files of a source in an object store, on the local disk of each process that reads them.

    Attributes:
        dir: Where each process makes a folder of its own, which it removes at its end; null: the folder of
            temporary files.
        size: Largest number of bytes in it, such as `20GB`; the least recently used files are removed first.
            The largest file of the source has to fit.
    """

    dir: str | None = None
    size: str = "20GB"


@dataclass
class SourceConfig:
    """Where demonstrations are and how their parts are named.

    Attributes:
        source: Folder (or file) of demonstrations, or the prefix of an object store (`s3://`, `gs://`,
            `az://`; not for HDF5 files). Also a folder `datasets--NAME--NAME` of the Hugging Face hub's
            cache, and a tar file or a pattern of some (`shards-{000..012}.tar`).
        anonymous: Whether the object store is asked without credentials: for what is public.
        spool: Where files of an object store are kept while they are read.
        recipe: Name of a file of `configs/recipe`, or the path of one: settings for one data set, in place of
            the defaults. What stands on the command line wins.
        recipe_sha256: Checksum of that file, filled in by the command.
        recipe_changed: Its settings that the command line set anew, filled in by the command.
        cameras: Cameras to read.
        format: `libero` (HDF5 files, also what `worldvla collect` writes), `lerobot` (v2.0, v2.1 or v3.0),
            `rlds` (TFRecord files of TensorFlow Datasets) or `webdataset` (tar files); null: detected from
            the files.
        action: The parts that together are the action, joined in this order: names, or parts with what is
            done to them and the names of their numbers (`data.recipe_settings.Part`); null: the usual name.
        state: The same for the state; null: the usual name; `[]`: no state (zeros where the action is the
            default one).
        embodiment: Name of the robot and of what its numbers mean; null: `libero` where the numbers are the
            default ones, else the robot's or the data set's own name.
        control_hz: Steps a second; null: as the data set says, where it does.
        missing: Dimensions of the action that this robot does not have: they become 0, and nothing is
            trained on them.
        no_ops: What a step must do to be kept: `motion` (some number is not zero: movements and velocities),
            `change` (a number differs from that of the last kept step: positions), or `keep` all of them;
            null: `motion` where the action begins with x y z or is the default one, else `change`.
        drop_first: Whether the first step of an episode is left out: `never`, where its action is `zero`, or
            `always` (RLDS only).
        successful: Which episodes are kept for their success.
        keep_ranges: Which steps are kept.
        instruction: Name of the instruction, in each step or (`episode_metadata/...`) once (RLDS and
            WebDataset only), or names of several, of which those count that are not empty; null: the usual
            name.
        episode_field: Name of what is the same for all steps of an episode and another one in the next
            (`json:episode_index`; WebDataset only); null: the key of a sample before its last `_` or `-`.
        several_instructions: Of an episode with several different instructions: `refuse` it, or take the
            `first`, the `last`, or one that is drawn (`draw`, the same in every run) for all of it, or `cut`
            it where the task changes (LeRobot only).
        drop_unlabeled: Leave out episodes without an instruction, without counting them as bad.
        draw_camera: Names of cameras, one of which is drawn for each episode as the agent's.
        draw_seed: Of what is drawn for an episode: it depends on this number and the episode's key alone.
        skip_bad: Demonstrations that may be left out because they cannot be used (numbers that are not
            finite, no movement, no instruction, damaged): a number, or below 1 a share of all.
        rotate: Rotate frames by 180 degrees; null: as the format defines (LIBERO's HDF5 files), else no.
        fit: How frames become square: `crop` (their middle), `pad` (black), `stretch`, or `refuse` (an
            error).
        resize: How frames of another size are brought to the resolution: `box_bicubic`, as the published code
            does (halved by a box filter while at least twice as large, then bicubic), or `lanczos`.
    """

    source: str = "???"
    anonymous: bool = False
    spool: SpoolConfig = field(default_factory=SpoolConfig)
    format: Format | None = None
    recipe: str | None = None
    recipe_sha256: str | None = None
    recipe_changed: list[str] = field(default_factory=list[str])
    cameras: CameraNames = field(default_factory=CameraNames)
    action: list[str | Part] | None = None
    state: list[str | Part] | None = None
    embodiment: str | None = None
    control_hz: float | None = None
    missing: list[str] = field(default_factory=list[str])
    no_ops: NoOps | None = None
    drop_first: DropFirst = "never"
    successful: SuccessConfig = field(default_factory=SuccessConfig)
    keep_ranges: KeepRangesConfig = field(default_factory=KeepRangesConfig)
    instruction: list[str] | None = None
    episode_field: str | None = None
    several_instructions: SeveralInstructions = "refuse"
    drop_unlabeled: bool = False
    draw_camera: list[str] = field(default_factory=list[str])
    draw_seed: int = 0
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
        weight: The data set's share of a mixture, relative to other data sets, unless a training says
            otherwise.
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
    weight: float | None = None


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
