"""The episodes of a data set as columns: a million of them load in a moment and take 0.1 GB.

The columns (`data.storage.episode_columns`) are one safetensors file beside `index.json`, which holds its
name and checksum.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays

from data.errors import InputError
from data.storage.episode_columns import DTYPES, check_columns
from data.storage.episode_entry import ALL_SPLITS, SPLITS, EpisodeEntry, Task
from data.storage.mapped_arrays import array_views
from data.storage.shards import check_key


class EpisodeTable(Sequence[EpisodeEntry]):
    """Episodes in the order of the shards, or a selection of them; entries are created on access.

    Args:
        columns: As in `data.storage.episode_columns`.
        shards: Names of the shards that column `shard` refers to.
        tasks: The tasks that column `task` refers to.
        rows: int32 [E], the selected rows; None: all.
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
        """Build a table from entries.

        Raises:
            InputError: A key occurs twice, or cannot name an episode.
        """
        listed = list(entries)
        if len({entry.key for entry in listed}) != len(listed):
            raise InputError("an episode key occurs twice; rename one of the demonstrations")
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
        columns = {name: np.asarray(values[name], dtype) for name, dtype in DTYPES.items()}
        return cls(columns, tuple(shards), tasks)

    @classmethod
    def parse(
        cls, content: mmap.mmap | bytes, where: str, shards: Sequence[str], tasks: Sequence[Task]
    ) -> EpisodeTable:
        """Read the content of `to_bytes`, without copying it; `where` leads every message.

        Raises:
            InputError: No such file, or a column is missing or out of range.
        """
        columns = array_views(content, where)
        check_columns(columns, where, len(shards), len(tasks))
        return cls(columns, shards, tasks)

    def to_bytes(self) -> bytes:
        """The columns as a safetensors file; the same episodes give the same bytes."""
        if self._rows is not None:
            return EpisodeTable.of(self).to_bytes()
        return save_arrays({name: np.ascontiguousarray(self._columns[name]) for name in sorted(DTYPES)})

    @cached_property
    def sha256(self) -> str:
        """Checksum of the file of the columns."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def file(self) -> str:
        """Name of the file of the columns, derived from their content."""
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
    def shard_numbers(self) -> NDArray[np.int32]:
        """Number of each episode's shard in `shards`, int32 [E]."""
        return self._column("shard")

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each episode begins within its shard, in bytes, int64 [E]."""
        return self._column("offset")

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Size of each episode within its shard in bytes, int64 [E]."""
        return self._column("size")

    def digest(self, number: int) -> bytes:
        """The entry's `sha256` as 32 bytes, in a tenth of the time that an entry takes."""
        row = number if self._rows is None else int(self._rows[number])
        return self._columns["sha256"][row].tobytes()

    def split(self, name: str) -> EpisodeTable:
        """The episodes of one of `SPLITS`, or of all (`ALL_SPLITS`); none for another name."""
        if name == ALL_SPLITS:
            return self
        number = SPLITS.index(name) if name in SPLITS else len(SPLITS)
        mask = self._column("split") == number
        return self if bool(mask.all()) else self.select(np.flatnonzero(mask))

    def select(self, numbers: NDArray[np.int64]) -> EpisodeTable:
        """The episodes with these numbers, in this order; columns are shared, not copied."""
        return self._selected(numbers.astype(np.int32))

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
            return self._selected(np.arange(len(self), dtype=np.int32)[number])
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

    def _selected(self, numbers: NDArray[np.int32]) -> EpisodeTable:
        rows = numbers if self._rows is None else self._rows[numbers]
        return EpisodeTable(self._columns, self.shards, self.tasks, rows)
