"""Episodes in the cache of a node: decoded, checked, and readable one time step at a time.

    rows   [T, W]   of a time step: the codes of each camera (by name) uint16 [R, C], action float64 [D],
                    state float32 [S], CRC-32 of these bytes, seeded with the number of the step
    JSON            key, suite, task and instruction, then its length in 4 bytes

All is little-endian. A whole episode is verified by the checksum of its file (`data.storage.episode_cache`),
a part of it by those of its rows. The episode was compared with the index before it was stored, and its name
depends on that comparison; so reading a window needs no more than its own rows.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import Episode
from data.errors import InputError
from data.json_record import JsonRecord
from data.storage.episode_cache import EpisodeCache
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM

_FORMAT = 2  # version of the content; another version has other names
_CRC = 4  # bytes, as many as of the length of the JSON
_TEXTS = ("key", "suite", "task", "instruction")

Rows = NDArray[Any]  # structured, see `row_type`


def codes_field(camera: str, variant: int = 0) -> str:
    """The field of a row with the codes of a camera; of a variant of its frames from 1 on."""
    return f"codes.{camera}.variant{variant}" if variant else f"codes.{camera}"


def row_type(
    cameras: Sequence[str], grid: tuple[int, int], widths: tuple[int, int], variants: int
) -> np.dtype[Any]:
    """One time step: fields of the codes (`codes_field`), `actions`, `states` and `crc`, packed."""
    fields = [codes_field(camera, variant) for variant in range(variants + 1) for camera in sorted(cameras)]
    codes = [(field, "<u2", grid) for field in fields]
    numbers = [("actions", "<f8", widths[:1]), ("states", "<f4", widths[1:]), ("crc", "<u4")]
    return np.dtype([*codes, *numbers])


class CachedEpisodes:
    """The episodes of one data set in the cache of a node; for any number of threads and processes.

    Args:
        cache: Shared with other data sets.
        cameras: Cameras of every episode.
        grid: Rows and columns of its codes.
        checked: What else an episode is compared with before it is stored, as text.
        widths: D and S, numbers of its actions and states.
        variants: Views of every episode beside the recorded one.

    Attributes:
        row: dtype of a time step.
    """

    def __init__(
        self,
        cache: EpisodeCache,
        cameras: Sequence[str],
        grid: tuple[int, int],
        checked: str,
        widths: tuple[int, int] = (ACTION_DIM, STATE_DIM),
        variants: int = 0,
    ) -> None:
        self._cache, self._cameras, self._variants = cache, sorted(cameras), variants
        self.row = row_type(cameras, grid, widths, variants)
        prefix = f"{_FORMAT} {','.join(sorted(cameras))} {grid[0]} {grid[1]} {checked} "
        if (widths, variants) != ((ACTION_DIM, STATE_DIM), 0):
            prefix += f"{widths[0]} {widths[1]} {variants} "
        self._name_prefix = hashlib.sha256(prefix.encode())

    def get(
        self, digests: Sequence[bytes], fetch: Callable[[list[int]], list[Episode | InputError]]
    ) -> list[Episode | InputError]:
        """Read whole episodes from the cache, or fetch and store those that are missing.

        Args:
            digests: The sha256 of each episode in its shard.
            fetch: Returns the episodes with these numbers, compared with the index, or the errors of single
                ones; its exceptions are passed on.

        Returns:
            In the order of `digests`.
        """
        fetched: dict[int, Episode | InputError] = {}

        def fetch_packed(numbers: list[int]) -> list[bytes | InputError]:
            found = fetch(numbers)
            fetched.update(zip(numbers, found, strict=True))
            return [item if isinstance(item, InputError) else self._pack(item) for item in found]

        contents = self._cache.get([self._name(digest) for digest in digests], fetch_packed)
        return [
            fetched[number] if number in fetched else self._unpack_or_error(content)
            for number, content in enumerate(contents)
        ]

    def read(self, sha256: bytes, parts: Sequence[tuple[int, memoryview]]) -> bool:
        """Read some time steps of an episode.

        Args:
            sha256: Of the episode in its shard.
            parts: First time step of each part, and the memory for its rows (any number of them).

        Returns:
            Whether all of them are present and valid; if not, `get` fetches the episode again.
        """
        name, width = self._name(sha256), self.row.itemsize
        present = self._cache.read_into(name, [(begin * width, into) for begin, into in parts])
        return present and all(_are_valid(into, width, begin) for begin, into in parts)

    def _name(self, sha256: bytes) -> str:
        name = self._name_prefix.copy()
        name.update(sha256)
        return name.hexdigest()

    def _pack(self, episode: Episode) -> bytes:
        rows = np.empty(episode.length, self.row)
        for variant, views in enumerate((episode.codes, *episode.variants)):
            for camera, codes in views.items():
                rows[codes_field(camera, variant)] = codes
        rows["actions"], rows["states"] = episode.actions, episode.states
        view, width = rows.view(np.uint8).data, self.row.itemsize
        begins = range(0, len(view), width)
        rows["crc"] = [zlib.crc32(view[at : at + width - _CRC], t) for t, at in enumerate(begins)]
        texts = json.dumps({name: getattr(episode, name) for name in _TEXTS}).encode()
        return b"".join([view, texts, len(texts).to_bytes(_CRC, "little")])

    def _unpack_or_error(self, content: bytes | InputError) -> Episode | InputError:
        if isinstance(content, InputError):
            return content
        try:
            return self._unpack(content)
        except InputError as error:
            return error

    def _unpack(self, content: bytes) -> Episode:
        size = int.from_bytes(content[-_CRC:], "little")
        end = len(content) - _CRC - size
        if end < 0 or end % self.row.itemsize:
            raise InputError(f"{len(content)} bytes in the cache are no episode; empty data.cache.dir")
        rows = np.frombuffer(content[:end], self.row)
        texts = JsonRecord.parse(content[end:-_CRC], "episode in data.cache.dir")
        views = [
            {camera: rows[codes_field(camera, variant)] for camera in self._cameras}
            for variant in range(self._variants + 1)
        ]
        return Episode(
            **{name: texts.text(name) for name in _TEXTS},
            codes=views[0],
            actions=rows["actions"],
            states=rows["states"],
            variants=tuple(views[1:]),
        )


def _are_valid(rows: memoryview, width: int, begin: int) -> bool:
    """Whether the checksums of rows match; the first row is time step `begin`."""
    for number, at in enumerate(range(0, len(rows), width), start=begin):
        end = at + width - _CRC
        if zlib.crc32(rows[at:end], number) != int.from_bytes(rows[end : end + _CRC], "little"):
            return False
    return True
