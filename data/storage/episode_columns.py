"""The columns of an episode table: dtypes, shapes, and the checks on reading them.

E episodes; N bytes of all keys::

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

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.storage.episode_entry import SPLITS

MAX_EPISODE_BYTES = 1 << 32

DTYPES = {
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


def check_columns(columns: dict[str, NDArray[Any]], where: str, shards: int, tasks: int) -> None:
    """Refuse columns of another form, or with values that no entry can have.

    Args:
        columns: Name -> array.
        where: Leads every message.
        shards: Number of shards that `shard` refers to.
        tasks: Number of tasks that `task` refers to.

    Raises:
        InputError: A column is missing, of another dtype or shape, or out of range.
    """
    count = columns["length"].size if "length" in columns else 0
    shapes = {name: (count, 32) if name == "sha256" else (count,) for name in DTYPES if name != "keys"}
    for name, dtype in sorted(DTYPES.items(), key=lambda item: item[0] in columns):  # a missing one first
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
        "size": (1, MAX_EPISODE_BYTES),
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
