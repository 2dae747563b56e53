"""Published samples of WorldVLA and RynnVLA-002 to episode shards.

The published data are samples, not episodes: an *action sample* holds an instruction, frames up to t and the
actions from t on, a *world sample* frame t, action t and frame t + 1. World samples in order of time share
their frames, so an episode's frames and actions can be restored exactly as codes and bins; the instruction is
that of an action sample of the same frame and action. RynnVLA-002's have two views of each frame, and its
action samples the robot's state. Not in the data, and so not in the shards: the action of an episode's last
frame (the frame is left out), and states where no action sample begins. WorldVLA's samples hold none at all
(zeros instead); of RynnVLA-002's episodes the last K - 2 time steps repeat the last known state, which no
action sample of K - 1 actions or more shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config import ConvertSamplesConfig
from data.contracts import AGENT_CAMERA, WRIST_CAMERA, Episode
from data.errors import InputError
from data.prepare.action_samples import MAX_VIEWS, ActionSamples, KnownStep, other_ranges
from data.prepare.index_builder import FrameFormat, assign_splits, check_out, check_writable, commit_index
from data.prepare.statistics import summarise
from data.sources.instructions import slug
from data.sources.token_pickles import TokenSample, list_samples, read_sample
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, ImageFormat, StateRanges
from data.storage.shards import ShardWriter
from data.storage.store import open_store
from data.tokens.action import NAMED_RANGES, restore
from data.tokens.state import STATE_MAX, STATE_MIN, check_state_ranges, restore_states
from data.tokens.text import TextTokenizer
from data.tokens.vocabulary import STATE_DIM

_CAMERAS = (AGENT_CAMERA, WRIST_CAMERA)  # in the order of the views
_MIN_MEAN_LENGTH = 2.0  # steps of an episode; fewer: the files are not in the order of time

Progress = Callable[[int, int], None]
"""Called with (files read, files to read: each is read twice)."""


@dataclass(frozen=True, slots=True)
class ConvertedSamples:
    """What was written.

    Attributes:
        index: Of the data set.
        has_states: Whether the samples hold states.
        repeated_states: Time steps at the ends of episodes whose state repeats the last known one.
        least_chunk: Fewest actions of action samples that show none of those.
    """

    index: DatasetIndex
    has_states: bool
    repeated_states: int
    least_chunk: int


@dataclass(frozen=True, slots=True)
class _Chain:
    """Frames int64 codes [V, R, C] and their actions' bins [7], one after the other in time."""

    frames: list[NDArray[np.int64]]
    bins: list[NDArray[np.int64]]


def convert_samples(
    config: ConvertSamplesConfig, text: TextTokenizer, image: FrameFormat, progress: Progress | None = None
) -> ConvertedSamples:
    """Write the data set of `config.source` below `config.out`.

    Raises:
        InputError: A file is no sample, the tokenizers or ranges are not those of the samples, the samples
            are of several kinds, or no episodes can be restored from them.
    """
    check_state_ranges(config.state_ranges.minimum, config.state_ranges.maximum)
    check_out(config.out)
    paths = list_samples(Path(config.source))
    check_writable(config.out)

    def read(before: int) -> Iterator[tuple[Path, TokenSample]]:
        for done, path in enumerate(paths, start=1):
            sample = read_sample(path)
            _check_grid(sample, image, path)
            yield path, sample
            if progress is not None:
                progress(before + done, 2 * len(paths))

    known = _read_action_samples(read(0), text, config)
    limit = round(config.shard_megabytes * 1_000_000)
    writer = ShardWriter(open_store(config.out), limit, compression=config.compression)
    episodes: list[Episode] = []  # without their codes
    counts: Counter[str] = Counter()
    repeated: list[int] = []
    views = 1
    for chain in _chains(read(len(paths))):
        views = len(chain.frames[0])
        steps = _known_steps(chain, known, config.source)
        task = slug(instruction := _instruction_of(steps, config.source))
        episode = Episode(
            key=f"{task}/demo_{counts[task]}",
            suite=config.suite,
            task=task,
            instruction=instruction,
            codes=dict(zip(_CAMERAS, np.stack(chain.frames, axis=1).astype(np.uint16), strict=False)),
            actions=_actions(chain, steps, config),
            states=_states(steps, config),
        )
        counts[task] += 1
        repeated.append(_steps_after_the_last_known(steps) if known.with_state else 0)
        writer.add(episode)
        episodes.append(
            Episode(episode.key, config.suite, task, instruction, {}, episode.actions, episode.states)
        )
    length = sum(episode.length for episode in episodes)
    if length < _MIN_MEAN_LENGTH * len(episodes) or not episodes:
        raise InputError(
            f"{config.source}: its world samples give {len(episodes)} episodes of {length} steps together, "
            "which are none; expected world samples whose files are numbered in the order of time"
        )
    index = _finish(config, image, _CAMERAS[:views], episodes, writer)
    return ConvertedSamples(index, known.with_state > 0, sum(repeated), 1 + max(repeated))


def _finish(
    config: ConvertSamplesConfig,
    image: FrameFormat,
    cameras: tuple[str, ...],
    episodes: list[Episode],
    writer: ShardWriter,
) -> DatasetIndex:
    splits = assign_splits([episode.task for episode in episodes])
    training = [episode for episode, split in zip(episodes, splits, strict=True) if split == "train"]
    entries = [
        EpisodeEntry.of(episode, location, split)
        for episode, location, split in zip(episodes, writer.close(), splits, strict=True)
    ]
    index = DatasetIndex(
        image=ImageFormat(image.pixels, image.rows, image.columns, image.codebook_size, image.sha256),
        cameras=cameras,
        action_ranges=NAMED_RANGES[config.ranges],
        statistics={
            "actions": summarise([episode.actions for episode in training]),
            "states": summarise([episode.states for episode in training]),
        },
        episodes=EpisodeTable.of(entries),
        url=config.out,
        compression=config.compression,
        resize="box_bicubic",  # by the published code
        state_ranges=_own_state_ranges(config),
    )
    commit_index(index)
    return index


def _read_action_samples(
    samples: Iterator[tuple[Path, TokenSample]], text: TextTokenizer, config: ConvertSamplesConfig
) -> ActionSamples:
    """Read all files and check that they are of one kind."""
    world_ranges = config.world_ranges or config.ranges
    known = ActionSamples(text, NAMED_RANGES[config.ranges], NAMED_RANGES[world_ranges])
    first: dict[int, Path] = {}  # views of a world sample -> one of them
    for path, sample in samples:
        if views := _world_views(sample):
            first.setdefault(views, path)
        else:
            known.add(sample)
    if len(first) == MAX_VIEWS:
        raise InputError(
            f"{config.source}: world samples of one view a frame ({first[1]}) and of two ({first[2]}); "
            "convert those of one view and those of two each into a data set of its own"
        )
    if known.with_state and known.without_state:
        raise InputError(
            f"{config.source}: {known.with_state} action samples with a state and {known.without_state} "
            "without; convert either kind into a data set of its own"
        )
    if MAX_VIEWS in first and known.views < MAX_VIEWS:
        raise InputError(
            f"{config.source}: world samples of two views a frame ({first[2]}), but action samples with an "
            "odd number of images; put action and world samples of the same views below one folder"
        )
    return known


def _world_views(sample: TokenSample) -> int:
    """Views of a world sample that predicts one frame from one action; 0: it is another sample."""
    views = sample.images_before
    is_world = len(sample.actions) == 1 and len(sample.images) == 2 * views and sample.state is None
    return views if is_world and 1 <= views <= MAX_VIEWS else 0


def _chains(samples: Iterator[tuple[Path, TokenSample]]) -> Iterator[_Chain]:
    """Runs of world samples (a frame, an action, the next frame) that share their frames."""
    chain = _Chain([], [])
    following: NDArray[np.int64] | None = None
    for _, sample in samples:
        if not (views := _world_views(sample)):
            continue
        frames = np.stack(sample.images)
        if following is not None and not np.array_equal(following, frames[:views]):
            yield chain
            chain = _Chain([], [])
        chain.frames.append(frames[:views])
        chain.bins.append(sample.actions[0])
        following = frames[views:]
    if chain.frames:
        yield chain


def _known_steps(chain: _Chain, known: ActionSamples, source: str) -> list[KnownStep | None]:
    """What action samples say of each time step of an episode."""
    steps: list[KnownStep | None] = []
    differing: list[tuple[KnownStep, NDArray[np.int64]]] = []
    for frames, bins in zip(chain.frames, chain.bins, strict=True):
        step, alike = known.find(frames, bins)
        steps.append(step)
        if step is None and alike is not None:
            differing.append((alike, bins))
    if 2 * len(differing) > len(steps):
        alike, bins = differing[0]
        raise other_ranges(source, len(differing), len(steps), alike.actions[0], bins)
    if known.with_state and any(steps):
        _check_states(steps, source)
    return steps


def _check_states(steps: Sequence[KnownStep | None], source: str) -> None:
    """Refuse unknown states but at the end, where no action sample of K actions begins."""
    chunk = max(len(step.actions) for step in steps if step is not None)
    gap = steps.index(None) if None in steps else len(steps)
    if any(steps[gap:]) or len(steps) - gap > max(chunk - 2, 0):
        raise InputError(
            f"{source}: no action sample gives the state of step {gap} of an episode of {len(steps)} steps; "
            "copy the action samples that are missing, or take its world samples out"
        )


def _instruction_of(steps: Sequence[KnownStep | None], source: str) -> str:
    for step in steps:
        if step is not None:
            return step.instruction
    raise InputError(
        f"{source}: no action sample gives the instruction of an episode of {len(steps)} steps; put "
        "action and world samples of the same demonstrations and views below one folder, and give their "
        "text_tokenizer"
    )


def _actions(
    chain: _Chain, steps: Sequence[KnownStep | None], config: ConvertSamplesConfig
) -> NDArray[np.float64]:
    """Actions float64 [T, 7]: those of the action samples, where world samples have other ranges."""
    world_ranges = config.world_ranges or config.ranges
    actions = restore(np.stack(chain.bins), NAMED_RANGES[world_ranges])
    if world_ranges == config.ranges:
        return actions
    for t, step in enumerate(steps):
        if step is not None:  # later samples overwrite what is the same
            own = restore(step.actions, NAMED_RANGES[config.ranges])[: len(actions) - t]
            actions[t : t + len(own)] = own
    return actions


def _own_state_ranges(config: ConvertSamplesConfig) -> StateRanges | None:
    """Ranges of states other than RynnVLA-002's, which a training has by default."""
    ranges = StateRanges(tuple(config.state_ranges.minimum), tuple(config.state_ranges.maximum))
    return None if ranges == StateRanges(STATE_MIN, STATE_MAX) else ranges


def _states(steps: Sequence[KnownStep | None], config: ConvertSamplesConfig) -> NDArray[np.float32]:
    """States float32 [T, 8]: zeros where samples hold none."""
    bins = [step.state for step in steps if step is not None and step.state is not None]
    if not bins:
        return np.zeros((len(steps), STATE_DIM), np.float32)
    bins += [bins[-1]] * (len(steps) - len(bins))
    ranges = config.state_ranges
    return restore_states(np.stack(bins), ranges.minimum, ranges.maximum)


def _steps_after_the_last_known(steps: Sequence[KnownStep | None]) -> int:
    return next(after for after, step in enumerate(reversed(steps)) if step is not None)


def _check_grid(sample: TokenSample, image: FrameFormat, path: Path) -> None:
    for codes in sample.images:
        if codes.shape != (image.rows, image.columns) or int(codes.max()) >= image.codebook_size:
            raise InputError(
                f"{path}: images of {codes.shape} codes up to {codes.max()}, the image tokenizer makes "
                f"{image.rows} x {image.columns} below {image.codebook_size}; give the one that made them"
            )
