"""Rows of LeRobot's tables: by episode, as tables of numbers, as frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import PurePath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.sources.interface import DemonstrationReference
from data.sources.lerobot.parquet import Columns, column
from data.sources.parts.array_checks import decode_picture, stack_frames

_MAX_ROWS = 100_000  # that are in memory for the checks


def groups_of_a_table(
    references: Iterable[DemonstrationReference],
) -> Iterator[list[DemonstrationReference]]:
    """Adjacent episodes of one table, with at most `_MAX_ROWS` rows together unless it is one."""
    for _, same in groupby(references, key=lambda reference: reference.path):
        group: list[DemonstrationReference] = []
        rows = 0
        for reference in same:
            if group and rows + reference.length > _MAX_ROWS:
                yield group
                group, rows = [], 0
            group.append(reference)
            rows += reference.length
        yield group


def split_by_episode(table: Columns, path: PurePath) -> dict[int, Columns]:
    """The rows of a table by their `episode_index`."""
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(column(table, "episode_index", path)):
        rows.setdefault(number, []).append(row)
    return {
        number: {name: [values[row] for row in chosen] for name, values in table.items()}
        for number, chosen in rows.items()
    }


def table_of_numbers(
    values: Sequence[Any], order: NDArray[np.int64], name: str, where: str
) -> NDArray[np.float64]:
    """A feature of numbers in the order of time, float64 [T, its width]."""
    try:
        table = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:  # rows of different lengths, or no numbers
        raise InputError(f"{where}: {name} is no table of numbers ({error}); export it again") from error
    return table.reshape(len(table), -1)[order]


def stored_images(
    values: Sequence[Any], order: NDArray[np.int64], name: str, where: str
) -> NDArray[np.uint8]:
    """Decode images stored in the table as `{bytes, path}` (Hugging Face's `Image` feature)."""
    frames: list[NDArray[np.uint8]] = []
    for row in order.tolist():
        value: object = values[row]
        content = cast("dict[str, object]", value).get("bytes") if isinstance(value, dict) else None
        if not isinstance(content, bytes):
            raise InputError(
                f"{where}: {name} holds no picture in row {row} (a path to a file outside is not followed); "
                "export the data set with its images embedded, or as video"
            )
        frames.append(decode_picture(content, f"{where}: {name} in row {row}"))
    return stack_frames(frames, name, where)
