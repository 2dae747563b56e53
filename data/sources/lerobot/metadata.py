"""The folder `meta` of a LeRobot data set: features, episodes, tasks, and the paths of tables and videos."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath, PurePosixPath
from typing import Any

from data.errors import InputError
from data.json_record import JsonRecord
from data.sources.files.source_files import SourceFiles
from data.sources.lerobot.parquet import Columns, column, read_table

_OLDER = ("v2.0", "v2.1")
_NEWEST = "v3.0"
_FRAMES, _DEPTH = ("video", "image"), "depth"
_DEPTH_MARKS = ("video.is_depth_map", "is_depth_map")
_TABLES, _LANGUAGE = "parquet", "language"
_FIELDS = frozenset(
    (
        *("codebase_version", "robot_type", "fps", "splits", "features", "data_path", "video_path"),
        *("total_episodes", "total_frames", "total_tasks", "total_videos", "total_chunks"),
        *("chunks_size", "data_files_size_in_mb", "video_files_size_in_mb", "storage_format"),
        *("repo_id", "tools"),  # of the functions that spoken answers may call (language columns)
    )
)
"""Fields of `info.json` that LeRobot writes."""

_LOG = logging.getLogger(__name__)
_EXPECTED = "a LeRobot data set, copy it again"
_NUMBERS = ("float", "int", "uint", "bool")
_FIELD = re.compile(r"\{([a-z_]+)(?::0?(\d)d)?\}")


@dataclass(frozen=True, slots=True)
class LerobotEpisode:
    """One episode of the metadata.

    Attributes:
        number: `episode_index`.
        length: Rows and frames T.
        tasks: Its task texts; one, unless its steps show several tasks.
        path_fields: Values for the fields of `data_path` and `video_path`, by camera; "" for the table.
        begins: Camera -> seconds at which the episode begins in its video.
    """

    number: int
    length: int
    tasks: tuple[str, ...]
    path_fields: Mapping[str, Mapping[str, int]]
    begins: Mapping[str, float]

    def video_begin(self, camera: str) -> float:
        """Seconds at which the episode begins in the camera's video."""
        return self.begins.get(camera, 0.0)


@dataclass(frozen=True)
class LerobotMetadata:
    """Everything about a data set but its rows and frames.

    Attributes:
        folder: The data set.
        fps: Rows per second.
        features: Column -> (dtype, shape).
        names: Column -> names of its numbers; empty: it has none.
        robot: `robot_type`; empty: not known.
        data_path, video_path: Templates of `info.json`.
        episodes: By number.
    """

    folder: PurePath
    fps: float
    features: Mapping[str, tuple[str, tuple[int, ...]]]
    names: Mapping[str, tuple[str, ...]]
    robot: str
    data_path: str
    video_path: str
    episodes: tuple[LerobotEpisode, ...]

    @classmethod
    def load(cls, files: SourceFiles) -> LerobotMetadata:
        """Read and check the metadata of a data set.

        Raises:
            InputError: A file is missing or damaged, or of an unknown format.
        """
        folder = files.root
        path = folder / "meta" / "info.json"
        info = JsonRecord.parse(files.read(path, _EXPECTED), str(path))
        version = info.text("codebase_version")
        if version not in (*_OLDER, _NEWEST):
            raise InputError(
                f"{path}: LeRobot format {version[:20]}, expected {', '.join(_OLDER)} or {_NEWEST}; "
                "convert it with LeRobot's own converter"
            )
        _check_marks(info, str(path))
        features = {name: _feature(item) for name, item in info.members("features").items()}
        if language := [name for name, (kind, _) in features.items() if kind == _LANGUAGE]:
            _LOG.warning(
                "%s: columns that are not read: %s; the instruction of an episode is its task",
                path,
                ", ".join(language),
            )
        cameras = [name for name, (kind, _) in features.items() if kind == "video"]
        if version == _NEWEST:
            episodes = _episodes_v3(files, cameras)
        else:
            episodes = _episodes_v2(files, info.integer("chunks_size", 1))
        counts = Counter(episode.number for episode in episodes)
        if repeated := [number for number, count in counts.items() if count > 1]:
            raise InputError(
                f"{folder}: its metadata (meta/episodes) name episode {repeated[0]} several times, "
                f"{len(repeated)} episodes in all; correct them, or copy the data set again"
            )
        return cls(
            folder=folder,
            fps=info.number("fps", above=0.0),
            features=features,
            names={name: item.listed_texts("names") for name, item in info.members("features").items()},
            robot=info.text("robot_type") if info.has_text("robot_type") else "",
            data_path=info.text("data_path"),
            video_path=info.text("video_path") if cameras else "",
            episodes=tuple(sorted(episodes, key=lambda episode: episode.number)),
        )

    @property
    def cameras(self) -> list[str]:
        """Names of the features that are frames."""
        return [name for name, (kind, _) in self.features.items() if kind in _FRAMES]

    @property
    def numbers(self) -> list[str]:
        """Names of the features that are numbers."""
        return [name for name, (kind, _) in self.features.items() if kind.startswith(_NUMBERS)]

    def kind(self, name: str) -> str:
        """The feature's `dtype`."""
        return self.features[name][0]

    def width(self, name: str) -> int:
        """Numbers in one row of a feature."""
        return math.prod(self.features[name][1])

    def episode(self, number: int) -> LerobotEpisode:
        """The episode with a number (InputError: there is none)."""
        episode = self._by_number.get(number)
        if episode is None:
            raise InputError(f"{self.folder}: no episode {number} in its metadata; list the data set again")
        return episode

    def table_path(self, episode: LerobotEpisode) -> PurePath:
        """The Parquet file with the episode's rows."""
        return self._path(self.data_path, episode.path_fields[""], None)

    def episode_video(self, episode: LerobotEpisode, camera: str) -> PurePath:
        """The video with the episode's frames of a camera."""
        return self._path(self.video_path, episode.path_fields.get(camera, episode.path_fields[""]), camera)

    @cached_property
    def _by_number(self) -> dict[int, LerobotEpisode]:
        return {episode.number: episode for episode in self.episodes}

    def _path(self, template: str, values: Mapping[str, int], camera: str | None) -> PurePath:
        """Fill in a template without evaluating anything; the path cannot leave the folder."""

        def fill(match: re.Match[str]) -> str:
            name, digits = match.groups()
            if name == "video_key" and camera is not None:
                return camera
            if name not in values:
                raise InputError(f"{self.folder}: template {template!r} has an unknown field {name}")
            return f"{values[name]:0{digits or 1}d}"

        filled = _FIELD.sub(fill, template)
        parts = PurePosixPath(filled).parts
        if not parts or filled.startswith("/") or ".." in parts or re.search(r"[{}\\\x00]", filled):
            raise InputError(
                f"{self.folder}: template {template!r} gives {filled!r}, expected a path in the data set; "
                "correct meta/info.json"
            )
        return self.folder.joinpath(*parts)


def _check_marks(info: JsonRecord, where: str) -> None:
    """Refuse another storage than tables and videos, and name the fields that nothing is known of."""
    storage = info.text("storage_format") if "storage_format" in info else _TABLES
    if storage != _TABLES:
        raise InputError(
            f"{where}: storage_format is {storage[:40]}, expected tables (Parquet) and videos (MP4); export "
            "the data set in that format, or load the one that it was converted from"
        )
    if unknown := sorted(set(info.names) - _FIELDS):
        _LOG.warning(
            "%s: fields that are not known here and not followed: %s; check that frames and actions are "
            "right with `worldvla inspect data sheet=frames.png`",
            where,
            ", ".join(unknown)[:200],
        )


def _feature(record: JsonRecord) -> tuple[str, tuple[int, ...]]:
    """Kind and shape of a column; those that are neither numbers nor frames (`language`) have no shape."""
    kind = record.text("dtype")
    if kind in _FRAMES and "info" in record and _is_depth(record.record("info")):
        return _DEPTH, ()
    return kind, _shape(record) if kind in _FRAMES or kind.startswith(_NUMBERS) else ()


def _shape(record: JsonRecord) -> tuple[int, ...]:
    return tuple(int(side) for side in record.numbers("shape"))


def _is_depth(info: JsonRecord) -> bool:
    """Whether a video's frames are distances, and no colours."""
    return any(name in info and info.flag(name) for name in _DEPTH_MARKS)


def _json_lines(files: SourceFiles, path: PurePath) -> Iterator[JsonRecord]:
    for number, line in enumerate(files.read(path, _EXPECTED).splitlines(), start=1):
        if line.strip():
            yield JsonRecord.parse(line, f"{path}: line {number}")


def _episodes_v2(files: SourceFiles, chunk_size: int) -> list[LerobotEpisode]:
    episodes: list[LerobotEpisode] = []
    path = files.root / "meta" / "episodes.jsonl"
    for record in _json_lines(files, path):
        number = record.integer("episode_index")
        path_fields = {"episode_chunk": number // chunk_size, "episode_index": number}
        tasks, length = tuple(record.texts("tasks")), record.integer("length", 1)
        episodes.append(LerobotEpisode(number, length, tasks, {"": path_fields}, {}))
    return episodes


def _episodes_v3(files: SourceFiles, cameras: list[str]) -> list[LerobotEpisode]:
    listed = files.files(files.root / "meta" / "episodes", recursive=True)
    paths = [path for path in listed if path.match("episodes/chunk-*/file-*.parquet")]
    if not paths:
        raise InputError(
            f"{files.root}: no meta/episodes/chunk-*/file-*.parquet there, expected LeRobot {_NEWEST}; copy "
            "the data set again"
        )
    names = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    for camera in cameras:
        names += [f"videos/{camera}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    episodes: list[LerobotEpisode] = []
    for path in paths:
        with files.opened(path) as local:
            table = read_table(local, names)
        columns = {name: column(table, name, path) for name in names}
        episodes += [_episode_v3(columns, row, cameras, path) for row in range(len(columns["length"]))]
    return episodes


def _episode_v3(columns: Columns, row: int, cameras: list[str], path: PurePath) -> LerobotEpisode:
    def integer(name: str, minimum: int = 0) -> int:
        value: Any = columns[name][row]
        if not isinstance(value, int) or value < minimum:
            raise InputError(
                f"{path}: {name} is {value!r} in row {row}, expected an integer from {minimum}; "
                "export it again"
            )
        return value

    def file_indices(prefix: str) -> dict[str, int]:
        return {name: integer(f"{prefix}/{name}") for name in ("chunk_index", "file_index")}

    number = integer("episode_index")
    tasks: Any = columns["tasks"][row]
    texts = [str(text) for text in tasks] if isinstance(tasks, list) else [str(tasks)]  # pyright: ignore
    return LerobotEpisode(
        number=number,
        length=integer("length", 1),
        tasks=tuple(texts),
        path_fields={
            "": file_indices("data"),
            **{camera: file_indices(f"videos/{camera}") for camera in cameras},
        },
        begins={camera: float(columns[f"videos/{camera}/from_timestamp"][row]) for camera in cameras},
    )
