"""The tasks of the rows of a LeRobot data set, where an episode shows several, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from data.errors import InputError
from data.json_record import JsonRecord
from data.sources.files.source_files import SourceFiles
from data.sources.keep_ranges import StepRange
from data.sources.lerobot.parquet import column, read_table

_TEXT_COLUMNS = ("task", "__index_level_0__")  # the second one is the index of a pandas table


def read_tasks(files: SourceFiles) -> dict[int, str]:
    """Task text by `task_index`, of `meta/tasks.jsonl` (v2.x) or `meta/tasks.parquet` (v3.0).

    Raises:
        InputError: There is neither, or it is damaged.
    """
    lines, table = (files.root / "meta" / f"tasks.{kind}" for kind in ("jsonl", "parquet"))
    if files.is_file(table):
        with files.opened(table) as place:
            columns = read_table(place, None)
        texts = next((columns[name] for name in _TEXT_COLUMNS if name in columns), None)
        if texts is None:
            raise InputError(
                f"{table}: no column task, it has {', '.join(columns)}; export the data set again"
            )
        return {
            int(index): str(text)
            for index, text in zip(column(columns, "task_index", table), texts, strict=True)
        }
    records = [
        JsonRecord.parse(line, f"{lines}: line {number}")
        for number, line in enumerate(
            files.read(lines, "the tasks of the data set; copy it again").splitlines(), start=1
        )
        if line.strip()
    ]
    return {record.integer("task_index"): record.text("task") for record in records}


def task_ranges(indices: Sequence[Any]) -> list[tuple[Any, StepRange]]:
    """Runs of rows (in the order of time) with the same task, with its `task_index`."""
    ranges: list[tuple[Any, StepRange]] = []
    begin = 0
    for index, rows in groupby(indices):
        end = begin + len(list(rows))
        ranges.append((index, StepRange(begin, end)))
        begin = end
    return ranges
