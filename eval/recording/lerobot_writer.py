"""Write recorded episodes as a LeRobot data set, format v3.0 (layout: `data.sources.lerobot.source`).

Each episode has video files of its own, which the format allows: they are linked, not copied. Rows of many
episodes share a table, one row group each. Row t holds the observation before action t, that action, and in
`next.success` and `next.done` what the action led to; an episode is done with its last row.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.files import sync_folder, write_text_whole, write_whole
from eval.recording.lerobot_format import (
    CAMERA_FEATURES,
    DATA_PATH,
    EPISODES_PATH,
    FILES_PER_CHUNK,
    VIDEO_PATH,
    dataset_info,
    task_table,
)
from eval.recording.recorded_episode import CAMERAS, RecordedEpisode
from eval.recording.statistics import FeatureStatistics
from eval.simulator.interface import CONTROL_FREQUENCY

PARTS = ("data", "videos", "meta")  # folders of a data set; without the last one it is none
_ROWS_PER_FILE = 500_000  # of at most 110 bytes
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)

Rows = dict[str, NDArray[Any]]


def write_data_set(folder: Path, episodes: Sequence[RecordedEpisode], pixels: int) -> None:
    """Write the folders `data`, `videos` and `meta` of a data set into an empty folder.

    Args:
        folder: On the file system of the episodes, where it has hard links; else videos are copied.
        episodes: At least one, in the data set's order; their frames have `pixels` a side.
        pixels: Side of the frames.

    Raises:
        OSError: It cannot be written.
    """
    tasks = list(dict.fromkeys(episode.instruction for episode in episodes))
    begins = np.cumsum([0, *(episode.length for episode in episodes)]).tolist()
    statistics: list[dict[str, FeatureStatistics]] = []
    described: list[dict[str, Any]] = []
    for file, numbers in enumerate(_files_of_rows(episodes)):
        with _Table() as table:
            for number in numbers:
                episode = episodes[number]
                rows = _rows(episode, number, begins[number], tasks.index(episode.instruction))
                table.append(_row_table(rows))
                found = _statistics(episode, rows)
                statistics.append(found)
                described.append(_description(episode, number, begins[number], file, found))
        table.write(folder / _path(DATA_PATH, file))
    for number, episode in enumerate(episodes):
        for camera in CAMERAS:
            video = folder / _path(VIDEO_PATH, number, video_key=CAMERA_FEATURES[camera])
            _link(episode.video(camera), video)
    _write_metadata(folder, episodes, tasks, described, statistics, pixels)


def _write_metadata(
    folder: Path,
    episodes: Sequence[RecordedEpisode],
    tasks: Sequence[str],
    described: Sequence[dict[str, Any]],
    statistics: Sequence[Mapping[str, FeatureStatistics]],
    pixels: int,
) -> None:
    with _Table() as table:
        table.append(pa.Table.from_pylist(list(described)))
    table.write(folder / _path(EPISODES_PATH, 0))
    with _Table() as table:
        table.append(task_table(tasks))
    table.write(folder / "meta" / "tasks.parquet")
    total = {
        name: FeatureStatistics.combined([part[name] for part in statistics]).to_json()
        for name in statistics[0]
    }
    write_text_whole(folder / "meta" / "stats.json", json.dumps(total, indent=4) + "\n")
    info = dataset_info([episode.length for episode in episodes], len(tasks), pixels)
    write_text_whole(folder / "meta" / "info.json", json.dumps(info, indent=4) + "\n")
    for part in PARTS:
        sync_folder(folder / part)


def _files_of_rows(episodes: Sequence[RecordedEpisode]) -> Iterator[list[int]]:
    """Numbers of the episodes of each table."""
    numbers: list[int] = []
    rows = 0
    for number, episode in enumerate(episodes):
        if numbers and rows + episode.length > _ROWS_PER_FILE:
            yield numbers
            numbers, rows = [], 0
        numbers.append(number)
        rows += episode.length
    yield numbers


def _rows(episode: RecordedEpisode, number: int, begin: int, task: int) -> Rows:
    """The rows of an episode by column, [T] or [T, D]."""
    steps = np.arange(episode.length)
    last = steps == episode.length - 1
    return {
        "observation.state": episode.states,
        "action": episode.actions,
        "next.success": last & episode.success,
        "next.done": last,
        "timestamp": (steps / CONTROL_FREQUENCY).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(episode.length, number),
        "index": begin + steps,
        "task_index": np.full(episode.length, task),
    }


def _row_table(rows: Rows) -> pa.Table:
    columns = {}
    for name, values in rows.items():
        column = pa.array(values.ravel())
        columns[name] = (
            column if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(column, values.shape[1])
        )
    return pa.table(columns)


def _statistics(episode: RecordedEpisode, rows: Rows) -> dict[str, FeatureStatistics]:
    """Feature -> its statistics over an episode."""
    frames = {CAMERA_FEATURES[camera]: episode.frames[camera] for camera in CAMERAS}
    numbers = {
        name: FeatureStatistics.of_values(values.reshape(len(values), -1)) for name, values in rows.items()
    }
    return frames | numbers


def _description(
    episode: RecordedEpisode, number: int, begin: int, file: int, statistics: Mapping[str, FeatureStatistics]
) -> dict[str, Any]:
    """The row of an episode in `meta/episodes`; the last three before its statistics are our own."""
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": [episode.instruction],
        "length": episode.length,
        **_indices("data", file),
        "dataset_from_index": begin,
        "dataset_to_index": begin + episode.length,
    }
    for camera in CAMERAS:
        name = f"videos/{CAMERA_FEATURES[camera]}"
        row |= _indices(name, number)
        row[f"{name}/from_timestamp"] = 0.0
        row[f"{name}/to_timestamp"] = episode.length / CONTROL_FREQUENCY
    row |= {
        "task_name": episode.task_name,
        "initial_state": episode.initial_state,
        "success": episode.success,
    }
    for name, found in statistics.items():
        row |= {f"stats/{name}/{statistic}": value for statistic, value in found.to_json().items()}
    return row | _indices("meta/episodes", 0)


def _indices(prefix: str, file: int) -> dict[str, int]:
    chunk, within = divmod(file, FILES_PER_CHUNK)
    return {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": within}


def _path(template: str, file: int, **fields: str) -> str:
    """The path of a numbered file."""
    chunk, within = divmod(file, FILES_PER_CHUNK)
    return template.format(chunk_index=chunk, file_index=within, **fields)


class _Table:
    """A Parquet table that is made in memory: pyarrow leaves half a file where a disk is full."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def append(self, rows: pa.Table) -> None:
        """Append rows as a row group of their own."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, rows.schema)
        self._writer.write_table(rows)

    def write(self, path: Path) -> None:
        """Write the table into a file, after the `with` block."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self._file.getvalue())


def _link(file: Path, link: Path) -> None:
    """Give a file a second name; where the file system has no links it is copied."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, link)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(file, link)
