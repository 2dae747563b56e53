"""Episodes of one split, read and tokenised once, kept up to a bound of memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.storage.index import SPLITS, DatasetIndex, EpisodeEntry, read_episode
from data.tokens.action import encode

CACHE_BYTES = 512 * 2**20  # a 256-pixel episode of 200 steps takes 0.1 MB


@dataclass(frozen=True, slots=True)
class TokenisedEpisode:
    """What samples are cut from.

    Attributes:
        codes: Image codes of one camera, uint16 [T, R, C]. Not yet image blocks, which take five times
            the memory and little time to make.
        action_ids: Action bins, int32 [T, 7].
    """

    codes: NDArray[np.uint16]
    action_ids: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take."""
        return self.codes.nbytes + self.action_ids.nbytes


class EpisodeCache:
    """The episodes of a split by number; those used last stay in memory. For one thread at a time.

    Args:
        index: The data set.
        split: One of `data.storage.index.SPLITS`.
        camera: Whose frames are used.
        capacity: Bytes to keep; the episode in use stays even if it alone is larger.

    Raises:
        InputError: The split is empty or unknown, or the data set lacks the camera.
    """

    def __init__(self, index: DatasetIndex, split: str, camera: str, capacity: int = CACHE_BYTES) -> None:
        self.entries = split_entries(index, split)
        if camera not in index.cameras:
            raise InputError(
                f"{index.url}: no camera {camera!r}, the data set has {', '.join(index.cameras)}; "
                "choose one of these with data.camera"
            )
        self._index = index
        self._camera = camera
        self._capacity = capacity
        self._kept: OrderedDict[int, TokenisedEpisode] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, number: int) -> TokenisedEpisode:
        """The episode, from memory or read and checked.

        Raises:
            InputError: The shard is missing, cut short or changed (names shard, episode and offset).
        """
        episode = self._kept.get(number)
        if episode is None:
            episode = self._read(self.entries[number])
            self._kept[number] = episode
            self._bytes += episode.nbytes
            while self._bytes > self._capacity and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        else:
            self._kept.move_to_end(number)
        return episode

    def _read(self, entry: EpisodeEntry) -> TokenisedEpisode:
        episode = read_episode(self._index, entry)
        ids = encode(episode.actions, self._index.action_ranges).astype(np.int32)
        return TokenisedEpisode(episode.codes[self._camera], ids)


def split_entries(index: DatasetIndex, split: str) -> tuple[EpisodeEntry, ...]:
    """The episodes of a split.

    Raises:
        InputError: There are none, or no split has this name.
    """
    entries = index.split(split)
    if not entries:
        held = ", ".join(f"{name} {len(index.split(name))}" for name in SPLITS)
        raise InputError(f"{index.url}: no episode in split {split!r}; the data set holds {held}")
    return entries
