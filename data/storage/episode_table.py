"""The episodes of a data set as columns: a million of them load in a moment and take 0.1 GB.

The columns lie in one safetensors file beside `index.json`, which names it with its checksum::

    shard     int32  [E]      row of the shard in `index.json`'s `shards`
    offset    int64  [E]      byte range of the episode's members within the shard, multiples of 512
    size      int64  [E]
    sha256    uint8  [E, 32]  of that range
    length    int32  [E]      time steps T
    task      int32  [E]      row of suite, task and instruction in `index.json`'s `tasks`
    split     uint8  [E]      number within `SPLITS`
    key_end   int64  [E]      where the episode's key ends within `keys` (it begins where the one before ends)
    keys      uint8  [N]      all keys, one after the other, in ASCII
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays

from data.contracts import Episode
from data.errors import InputError
from data.storage.mapped_arrays import array_views
from data.storage.shards import Location, check_key

SPLITS = ("train", "val_ind", "val_ood")
LARGEST_EPISODE = 1 << 32  # bytes

_DTYPES = {
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "sha256": np.uint8,
    "length": np.int32,
    "task": np.int32,
    "split": np.uint8,
    "key_end": np.int64,
    "keys": np.uint8,
}


@dataclass(frozen=True, slots=True)
class EpisodeEntry:
    """One episode: bytes [offset, offset + size) of `shard` are its members.

    Attributes:
        key: Unique within the data set.
        shard: Object name below the data set's URL.
        offset, size: Byte range, multiples of 512.
        sha256: Of that range.
        length: Time steps T.
        suite, task, instruction: As in `data.contracts.Episode`.
        split: One of `SPLITS`.
    """

    key: str
    shard: str
    offset: int
    size: int
    sha256: str
    length: int
    suite: str
    task: str
    instruction: str
    split: str

    @classmethod
    def of(cls, episode: Episode, place: Location, split: str) -> EpisodeEntry:
        """The entry of an episode that was written to a shard."""
        return cls(
            key=episode.key,
            shard=place.shard,
            offset=place.offset,
            size=place.size,
            sha256=place.sha256,
            length=episode.length,
            suite=episode.suite,
            task=episode.task,
            instruction=episode.instruction,
            split=split,
        )


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """What episodes have in common; fields as in `data.contracts.Episode`."""

    suite: str
    task: str
    instruction: str


class EpisodeTable(Sequence[EpisodeEntry]):
    """Episodes in the order of the shards, or a selection of them; an entry is made when it is asked for.

    Args:
        columns: As in the module's docstring.
        shards: Names that `shard` counts.
        tasks: What `task` counts.
        rows: int32 [E], the selection; None: all.
    """

    def __init__(
        self,
        columns: dict[str, NDArray[Any]],
        shards: Sequence[str],
        tasks: Sequence[Task],
        rows: NDArray[np.int32] | None = None,
    ) -> None:
        self._columns = columns
        self.shards = tuple(shards)
        self.tasks = tuple(tasks)
        self._rows = rows

    @classmethod
    def of(cls, entries: Iterable[EpisodeEntry]) -> EpisodeTable:
        """Gather entries.

        Raises:
            InputError: A key comes twice, or cannot name an episode.
        """
        listed = list(entries)
        if len({entry.key for entry in listed}) != len(listed):
            raise InputError("an episode key comes twice; rename one of the demonstrations")
        shards = {name: row for row, name in enumerate(dict.fromkeys(entry.shard for entry in listed))}
        tasks = sorted({Task(entry.suite, entry.task, entry.instruction) for entry in listed})
        rows = {task: row for row, task in enumerate(tasks)}
        keys = [check_key(entry.key).encode("ascii") for entry in listed]
        digests = b"".join(bytes.fromhex(entry.sha256) for entry in listed)
        values: dict[str, Any] = {
            "shard": [shards[entry.shard] for entry in listed],
            "offset": [entry.offset for entry in listed],
            "size": [entry.size for entry in listed],
            "sha256": np.frombuffer(digests, np.uint8).reshape(len(listed), 32),
            "length": [entry.length for entry in listed],
            "task": [rows[Task(entry.suite, entry.task, entry.instruction)] for entry in listed],
            "split": [SPLITS.index(entry.split) for entry in listed],
            "key_end": np.cumsum([len(key) for key in keys]),
            "keys": np.frombuffer(b"".join(keys), np.uint8),
        }
        columns = {name: np.asarray(values[name], dtype) for name, dtype in _DTYPES.items()}
        return cls(columns, tuple(shards), tasks)

    @classmethod
    def parse(
        cls, content: mmap.mmap | bytes, where: str, shards: Sequence[str], tasks: Sequence[Task]
    ) -> EpisodeTable:
        """Read what `to_bytes` made, without copying it; `where` leads every message.

        Raises:
            InputError: No such file, or something in it does not hold.
        """
        columns = array_views(content, where)
        _check(columns, where, len(shards), len(tasks))
        return cls(columns, shards, tasks)

    def to_bytes(self) -> bytes:
        """The columns as a safetensors file; the same episodes give the same bytes."""
        if self._rows is not None:
            return EpisodeTable.of(self).to_bytes()
        return save_arrays({name: np.ascontiguousarray(self._columns[name]) for name in sorted(_DTYPES)})

    @cached_property
    def sha256(self) -> str:
        """Checksum of the file of the columns."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def file(self) -> str:
        """Name of the file of the columns: another content, another name."""
        return f"episodes-{self.sha256[:16]}.safetensors"

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Time steps of each episode, int32 [E]."""
        return self._column("length")

    @property
    def task_numbers(self) -> NDArray[np.int32]:
        """Row of each episode's suite, task and instruction in `tasks`, int32 [E]."""
        return self._column("task")

    @property
    def instructions(self) -> list[str]:
        """The distinct instructions of these episodes, sorted."""
        used = np.zeros(len(self.tasks), bool)
        used[self.task_numbers] = True
        return sorted({self.tasks[row].instruction for row in np.flatnonzero(used)})

    @property
    def split_numbers(self) -> NDArray[np.int64]:
        """Number of each episode's split within `SPLITS`, int64 [E]."""
        return self._column("split").astype(np.int64)

    @property
    def shard_numbers(self) -> NDArray[np.int64]:
        """Row of each episode's shard in `shards`, int64 [E]."""
        return self._column("shard").astype(np.int64)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each episode begins within its shard, bytes, int64 [E]."""
        return self._column("offset")

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each episode within its shard, int64 [E]."""
        return self._column("size")

    def digest(self, number: int) -> bytes:
        """What the entry has as `sha256`, as 32 bytes; a tenth of the time that an entry takes."""
        row = number if self._rows is None else int(self._rows[number])
        return self._columns["sha256"][row].tobytes()

    def split(self, name: str) -> EpisodeTable:
        """The episodes of one of `SPLITS`; none for another name."""
        number = SPLITS.index(name) if name in SPLITS else len(SPLITS)
        of = self._column("split") == number
        return self if bool(of.all()) else self.select(np.flatnonzero(of))

    def select(self, numbers: NDArray[np.int64]) -> EpisodeTable:
        """The episodes with these numbers, in this order; columns are shared, not copied."""
        return self._chosen(numbers.astype(np.int32))

    def __len__(self) -> int:
        return len(self._columns["length"] if self._rows is None else self._rows)

    @overload
    def __getitem__(self, number: int) -> EpisodeEntry: ...
    @overload
    def __getitem__(self, number: slice) -> EpisodeTable: ...
    def __getitem__(self, number: int | slice) -> EpisodeEntry | EpisodeTable:
        """One entry, or a selection.

        Raises:
            InputError: The key in the file cannot name an episode.
        """
        if isinstance(number, slice):
            return self._chosen(np.arange(len(self), dtype=np.int32)[number])
        row = range(len(self))[number] if self._rows is None else int(self._rows[number])
        column = self._columns
        begin = int(column["key_end"][row - 1]) if row else 0
        key = column["keys"][begin : int(column["key_end"][row])].tobytes().decode("ascii", "replace")
        task = self.tasks[int(column["task"][row])]
        return EpisodeEntry(
            key=check_key(key),
            shard=self.shards[int(column["shard"][row])],
            offset=int(column["offset"][row]),
            size=int(column["size"][row]),
            sha256=column["sha256"][row].tobytes().hex(),
            length=int(column["length"][row]),
            suite=task.suite,
            task=task.task,
            instruction=task.instruction,
            split=SPLITS[int(column["split"][row])],
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EpisodeTable) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # columns may change

    def _column(self, name: str) -> NDArray[Any]:
        column = self._columns[name]
        return column if self._rows is None else column[self._rows]

    def _chosen(self, numbers: NDArray[np.int32]) -> EpisodeTable:
        rows = numbers if self._rows is None else self._rows[numbers]
        return EpisodeTable(self._columns, self.shards, self.tasks, rows)


def _check(columns: dict[str, NDArray[Any]], where: str, shards: int, tasks: int) -> None:
    """Whatever would make an entry lead astray later."""
    count = columns["length"].size if "length" in columns else 0
    shapes = {name: (count, 32) if name == "sha256" else (count,) for name in _DTYPES if name != "keys"}
    for name, dtype in sorted(_DTYPES.items(), key=lambda item: item[0] in columns):  # a missing one first
        column = columns.get(name)
        shape = shapes.get(name)
        if column is None or column.dtype != dtype or (column.shape != shape if shape else column.ndim != 1):
            found = "nothing" if column is None else f"{column.dtype} {column.shape}"
            raise InputError(
                f"{where}: column {name} is {found}, expected {np.dtype(dtype)} {shape or '(N,)'}; "
                "prepare the data set again"
            )
    ranges = {
        "shard": (0, shards - 1),
        "offset": (0, 1 << 62),
        "size": (1, LARGEST_EPISODE),
        "length": (1, 1 << 31),
        "task": (0, tasks - 1),
        "split": (0, len(SPLITS) - 1),
        "key_end": (0, len(columns["keys"])),
    }
    for name, (low, high) in ranges.items():
        values = columns[name]
        if count and not low <= int(values.min()) <= int(values.max()) <= high:
            raise InputError(
                f"{where}: column {name} ranges from {values.min()} to {values.max()}, expected {low} to "
                f"{high}; prepare the data set again"
            )
    ends = columns["key_end"]
    if bool((ends[1:] < ends[:-1]).any()):
        raise InputError(f"{where}: column key_end decreases; prepare the data set again")
