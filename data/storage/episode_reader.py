"""One episode of a data set: from the cache of the node or with one range request, always verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from data.contracts import Episode
from data.errors import InputError
from data.storage.episode_entry import EpisodeEntry
from data.storage.index import DatasetIndex
from data.storage.shards import decode_episode, expand_episode

_MEMBER_OVERHEAD = 256  # bytes of a member's npy header, or of the names in the JSON, at most


def read_episode(index: DatasetIndex, entry: EpisodeEntry) -> Episode:
    """Read one episode from the cache, or fetch it with one range request, and check it.

    Raises:
        InputError: Missing, cut short, changed, or different from the index; the message names shard,
            episode and offset.
    """
    try:
        if index.cached_episodes is None:
            return _fetch(index, entry)
        episode = index.cached_episodes.get(bytes.fromhex(entry.sha256), lambda: _fetch(index, entry))
        _check_episode(index, entry, episode)
    except InputError as error:
        raise InputError(
            f"{index.url}: shard {entry.shard}, episode {entry.key}, offset {entry.offset}: {error}"
        ) from error
    return episode


def _fetch(index: DatasetIndex, entry: EpisodeEntry) -> Episode:
    """Fetch an episode from its shard, verified and compared with the index."""
    content = index.store.read_range(entry.shard, entry.offset, entry.size)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != entry.sha256:
        raise InputError(
            f"sha256 {sha256[:12]}, expected {entry.sha256[:12]}; copy the shard or prepare it again"
        )
    if index.compression != "none":
        content = expand_episode(content, _max_bytes(index, entry))
    episode = decode_episode(content)
    _check_episode(index, entry, episode)
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
