"""Episodes of a data set: from the cache of the node or with range requests, always verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data.contracts import Episode
from data.errors import InputError, StorageError
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_ranges import join_ranges
from data.storage.index import DatasetIndex
from data.storage.shards import decode_episode, expand_episode

_MEMBER_OVERHEAD = 256  # bytes of a member's npy header, or of the names in the JSON, at most


def read_episode(index: DatasetIndex, entry: EpisodeEntry) -> Episode:
    """Read one episode from the cache, or fetch it with one range request, and check it.

    Raises:
        InputError: Missing, cut short, changed, or different from the index; the message names shard,
            episode and offset.
    """
    (outcome,) = read_episodes(index, [entry])
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def read_episodes(index: DatasetIndex, entries: Sequence[EpisodeEntry]) -> list[Episode | InputError]:
    """Read several episodes of a data set, those that are not in the cache with as few requests as possible.

    Neighbours in a shard share a range request (`data.storage.episode_ranges`).

    Returns:
        In the order of `entries`: each episode, checked, or the error of it alone, as `read_episode` raises.
    """
    cached = index.cached_episodes
    if cached is None:
        outcomes = _fetch(index, entries)
    else:
        digests = [bytes.fromhex(entry.sha256) for entry in entries]
        outcomes = cached.get(digests, lambda numbers: _fetch(index, [entries[n] for n in numbers]))
    return [_check_outcome(index, entry, found) for entry, found in zip(entries, outcomes, strict=True)]


def _check_outcome(
    index: DatasetIndex, entry: EpisodeEntry, outcome: Episode | InputError
) -> Episode | InputError:
    """An episode that is as the index says; or its error, with the place of the episode."""
    try:
        if isinstance(outcome, InputError):
            raise outcome
        if index.cached_episodes is not None:
            _check_episode(index, entry, outcome)
    except InputError as error:
        where = f"{index.url}: shard {entry.shard}, episode {entry.key}, offset {entry.offset}"
        named = InputError(f"{where}: {error}")
        named.__cause__ = error
        return named
    return outcome


def _fetch(index: DatasetIndex, entries: Sequence[EpisodeEntry]) -> list[Episode | InputError]:
    """Fetch episodes from their shards, each verified and compared with the index, or its error."""
    if len(entries) == 1:
        return _fetch_run(index, entries)
    outcomes: dict[int, Episode | InputError] = {}
    for run in join_ranges(entries):
        found = _fetch_run(index, [entries[number] for number in run])
        outcomes.update(zip(run, found, strict=True))
    return [outcomes[number] for number in range(len(entries))]


def _fetch_run(index: DatasetIndex, run: Sequence[EpisodeEntry]) -> list[Episode | InputError]:
    """Fetch episodes of one shard, in their order, with one range request."""
    begin, end = run[0].offset, run[-1].offset + run[-1].size
    try:
        content = memoryview(index.store.read_range(run[0].shard, begin, end - begin))
    except StorageError as error:  # a storage that is away is not asked again for each episode
        return [error] * len(run)
    except InputError as error:
        if len(run) == 1:
            return [error]
        return [outcome for entry in run for outcome in _fetch_run(index, [entry])]  # which ones are there
    offsets = [entry.offset - begin for entry in run]
    return [
        _decode(index, entry, content[at : at + entry.size]) for entry, at in zip(run, offsets, strict=True)
    ]


def _decode(index: DatasetIndex, entry: EpisodeEntry, content: memoryview | bytes) -> Episode | InputError:
    """An episode from the bytes of its range, verified and compared with the index, or its error."""
    try:
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != entry.sha256:
            raise InputError(
                f"sha256 {sha256[:12]}, expected {entry.sha256[:12]}; copy the shard or prepare it again"
            )
        if index.compression != "none":
            content = expand_episode(content, _max_bytes(index, entry))
        episode = decode_episode(content)
        _check_episode(index, entry, episode)
    except InputError as error:
        return error
    return episode


def _max_bytes(index: DatasetIndex, entry: EpisodeEntry) -> int:
    """Upper bound of the bytes of all members of an episode of this length."""
    views = len(index.cameras) * (1 + index.variants)
    robot = index.embodiment
    step = 2 * views * index.image.rows * index.image.columns + 8 * robot.action_dim + 4 * robot.state_dim
    texts = 12 * (len(entry.suite) + len(entry.task) + len(entry.instruction))  # JSON may escape each letter
    return entry.length * step + texts + (views + 3) * _MEMBER_OVERHEAD


def _check_episode(index: DatasetIndex, entry: EpisodeEntry, episode: Episode) -> None:
    if (episode.key, episode.length) != (entry.key, entry.length):
        raise InputError(
            f"holds {episode.key} of {episode.length} steps, the index says {entry.length} steps"
        )
    if len(episode.variants) != index.variants:
        raise InputError(f"holds {len(episode.variants)} variants, the index says {index.variants}")
    for views in (episode.codes, *episode.variants):
        _check_codes(index, views)
    widths = index.embodiment.action_dim, index.embodiment.state_dim
    for name, values, width in zip(
        ("actions", "states"), (episode.actions, episode.states), widths, strict=True
    ):
        if values.shape[1] != width:
            raise InputError(f"{name} of {values.shape[1]} numbers, the index says {width}")
        if np.isnan(values).any():
            raise InputError(f"{name} hold values that are no numbers; drop or repair the demonstration")


def _check_codes(index: DatasetIndex, views: Mapping[str, NDArray[np.uint16]]) -> None:
    """Refuse codes of other cameras or grids, or beyond the codebook (InputError)."""
    if set(views) != set(index.cameras):
        raise InputError(f"holds cameras {sorted(views)}, the index says {sorted(index.cameras)}")
    grid = (index.image.rows, index.image.columns)
    for camera, codes in views.items():
        if codes.shape[1:] != grid:
            raise InputError(f"camera {camera} has a grid of {codes.shape[1:]}, the index says {grid}")
        if int(codes.max()) >= index.image.codebook_size:
            raise InputError(
                f"camera {camera} has code {codes.max()}, the index says below {index.image.codebook_size}"
            )
