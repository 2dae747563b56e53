"""LeRobot data sets, format v2.0, v2.1 and v3.0: Parquet tables, MP4 videos or images in the tables.

v2.x                                              v3.0
meta/info.json                                    meta/info.json
meta/episodes.jsonl                               meta/episodes/chunk-000/file-000.parquet
meta/tasks.jsonl                                  meta/tasks.parquet
data/chunk-000/episode_000000.parquet             data/chunk-000/file-000.parquet  (many episodes)
videos/chunk-000/KEY/episode_000000.mp4           videos/KEY/chunk-000/file-000.mp4  (many episodes)

`info.json` holds the paths of tables and videos (`data_path`, `video_path`), their rate (`fps`) and the
columns (`features`). The frame of a row is the one at the row's `timestamp`, in v3.0 relative to the
beginning of the episode in its file (`videos/KEY/from_timestamp`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.contracts import Demonstration, Embodiment
from data.errors import InputError
from data.sources.files.source_files import SourceFiles, open_files
from data.sources.instructions import choose_text, clean_instruction, slug
from data.sources.interface import DemonstrationReference
from data.sources.keep_ranges import RANGE_MARK, StepRange, parse_item, range_item
from data.sources.lerobot.metadata import LerobotEpisode, LerobotMetadata
from data.sources.lerobot.parquet import Columns, Filter, column, read_table
from data.sources.lerobot.rows import (
    groups_of_a_table,
    split_by_episode,
    stored_images,
    table_of_numbers,
)
from data.sources.lerobot.tasks import read_tasks, task_ranges
from data.sources.no_ops import NoOpRule, moving_steps
from data.sources.parts.array_checks import check_steps, missing_file
from data.sources.parts.feature_names import EpisodeCameras
from data.sources.parts.step_parts import NumbersFeature, StepParts, resolve_parts
from data.sources.video import read_video
from data.unicode_text import is_blank

_LOG = logging.getLogger(__name__)
_USUAL = {"action": ("action", "actions"), "state": ("observation.state", "state")}


class LerobotSource:
    """Reads one data set.

    Args:
        config: Cameras, action and state by their names in the data set's `features`.
        files: Of the source; None: opened here.
    """

    def __init__(self, config: SourceConfig, files: SourceFiles | None = None) -> None:
        self._config = config
        self.files = open_files(config) if files is None else files
        self._folder = self.files.root

    def embodiment(self) -> Embodiment:
        """By the parts that the settings name."""
        return self._parts.embodiment

    def no_ops(self) -> NoOpRule:
        """By the names of the action's numbers, or as the settings say."""
        return self._parts.no_ops

    def references(self) -> list[DemonstrationReference]:
        """Every episode, by its number.

        Raises:
            InputError: The metadata are damaged, or lack a requested part.
        """
        assert self._parts.actions  # looked up, and refused where they are not there
        if not self._metadata.episodes:
            raise InputError(f"{self._folder}: its metadata name no episode; export the data set again")
        labelled = [episode for episode in self._metadata.episodes if not self._is_left_out(episode)]
        if left_out := len(self._metadata.episodes) - len(labelled):
            _LOG.info("%s: left out by the settings: %d episodes without a task", self._folder, left_out)
        if not labelled:
            raise InputError(
                f"{self._folder}: none of its {left_out} episodes has a task; set drop_unlabeled=false"
            )
        return [reference for episode in labelled for reference in self._references(episode)]

    def checked(self, references: Iterable[DemonstrationReference]) -> Iterator[DemonstrationReference]:
        """The same references, with the faults of their files, actions and states; no frame is decoded.

        Each table is read once, without its frames, some episodes at a time.
        """
        for group in groups_of_a_table(references):
            path, numbers = group[0].path, [_number(reference) for reference in group]
            rows: dict[int, Columns] | InputError
            try:
                between = [("episode_index", ">=", min(numbers)), ("episode_index", "<=", max(numbers))]
                rows = split_by_episode(self._read_rows(path, ["episode_index"], between), path)
            except InputError as error:
                rows = error
            for reference in group:
                yield reference if reference.fault else self._checked(reference, rows)

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read one episode's rows and decode its frames.

        Raises:
            InputError: A part is missing, damaged, or of another length than in the metadata.
        """
        number, kept = _number(reference), _kept(reference)
        episode, where = self._metadata.episode(number), self._where(number)
        cameras = self._cameras.of(reference.key)
        images = [name for name in cameras.values() if self._metadata.kind(name) == "image"]
        path = self._metadata.table_path(episode)
        table = self._read_rows(path, images, [("episode_index", "=", number)])
        order = self._order(table, episode, path)
        actions, states = self._actions_and_states(table, order, path, where)
        order = kept.cut(order)
        times = np.asarray(column(table, "timestamp", path), np.float64)[order]
        frames: dict[str, NDArray[np.uint8]] = {}
        for camera, name in cameras.items():
            if name in images:
                frames[camera] = stored_images(column(table, name, path), order, name, where)
            else:
                begin = episode.video_begin(name)
                tolerance = 0.25 / self._metadata.fps
                with self.files.opened(self._metadata.episode_video(episode, name)) as video:
                    frames[camera] = read_video(video, begin + times, tolerance)
            if self._config.rotate:
                frames[camera] = frames[camera][:, ::-1, ::-1]
        return reference.demonstration(frames, kept.cut(actions), kept.cut(states))

    @cached_property
    def _metadata(self) -> LerobotMetadata:
        return LerobotMetadata.load(self.files)

    @cached_property
    def _cameras(self) -> EpisodeCameras:
        return EpisodeCameras.choose(self._metadata.cameras, self._config, str(self._folder))

    @cached_property
    def _parts(self) -> StepParts:
        metadata = self._metadata
        numbers = {
            name: NumbersFeature(metadata.width(name), metadata.names[name]) for name in metadata.numbers
        }
        robot = slug(metadata.robot or self.files.name)
        available = {"action": numbers, "state": numbers}
        return resolve_parts(self._config, available, _USUAL, str(self._folder), robot, metadata.fps)

    def _is_left_out(self, episode: LerobotEpisode) -> bool:
        """Whether an episode has no task and is left out for that."""
        return self._config.drop_unlabeled and all(map(is_blank, episode.tasks))

    def _where(self, number: int) -> str:
        return f"{self._folder}: episode {number}"

    def _references(self, episode: LerobotEpisode) -> list[DemonstrationReference]:
        """An episode, or one for each of its tasks where it is cut."""
        if self._config.several_instructions != "cut" or len(set(episode.tasks)) == 1:
            return [self._reference(episode, episode.tasks)]
        whole = self._reference(episode, episode.tasks[:1])
        path = self._metadata.table_path(episode)
        try:
            filters: list[Filter] = [("episode_index", "=", episode.number)]
            with self.files.opened(path) as place:
                table = read_table(place, ["task_index", "frame_index"], filters)
            order = self._order(table, episode, path)
            indices = np.asarray(column(table, "task_index", path))[order].tolist()
            cut = [(self._task_text(index), each) for index, each in task_ranges(indices)]
        except InputError as error:
            return [replace(whole, fault=str(error))]
        return [
            replace(
                self._reference(episode, [text]),
                item=range_item(episode.number, each),
                key=f"{whole.key}{RANGE_MARK}{each}",
                length=each.end - each.begin,
            )
            for text, each in cut
        ]

    @cached_property
    def _tasks(self) -> dict[int, str]:
        return read_tasks(self.files)

    def _task_text(self, index: int) -> str:
        if index not in self._tasks:
            raise InputError(f"{self._folder}: no task {index} in meta/tasks; export the data set again")
        return self._tasks[index]

    def _reference(self, episode: LerobotEpisode, tasks: Sequence[str]) -> DemonstrationReference:
        key = f"episode_{episode.number:06d}"
        videos = [name for name in self._cameras.of(key).values() if self._metadata.kind(name) == "video"]
        where, task, instruction, fault = self._where(episode.number), "", "", ""
        drawn_by = (self._config.draw_seed, key)
        try:
            task = choose_text(tasks, self._config.several_instructions, where, drawn_by)
            instruction = clean_instruction(task, where)
        except InputError as error:
            fault = str(error)
        return DemonstrationReference(
            path=self._metadata.table_path(episode),
            item=str(episode.number),
            key=key,
            suite=slug(self.files.name),
            task=slug(task),
            instruction=instruction,
            length=episode.length,
            cameras=tuple(sorted(self._cameras.names)),
            videos=tuple(self._metadata.episode_video(episode, name) for name in videos),
            fault=fault,
        )

    def _checked(
        self, reference: DemonstrationReference, rows: dict[int, Columns] | InputError
    ) -> DemonstrationReference:
        """A reference with what its rows tell; `rows` are those of its table, or why that cannot be read."""
        number, path, kept = _number(reference), reference.path, _kept(reference)
        try:
            if isinstance(rows, InputError):
                raise rows
            for video in reference.videos:
                if not self.files.is_file(video):
                    raise missing_file(video, "a video")
            table = rows.get(number, {})
            order = self._order(table, self._metadata.episode(number), path)
            actions, _ = self._actions_and_states(table, order, path, self._where(number))
        except InputError as error:
            return replace(reference, fault=str(error))
        return replace(reference, idle=not moving_steps(kept.cut(actions), self.no_ops()).any())

    def _read_rows(self, path: PurePath, others: list[str], filters: list[Filter]) -> Columns:
        """The columns of numbers, and others, of the rows that match."""
        names = [*self._parts.features, "timestamp", "frame_index", *others]
        with self.files.opened(path) as table:
            return read_table(table, list(dict.fromkeys(names)), filters)

    def _order(self, table: Columns, episode: LerobotEpisode, path: PurePath) -> NDArray[np.int64]:
        """The order in time of an episode's rows; as many as its metadata say (InputError)."""
        rows = column(table, "frame_index", path) if table else []
        check_steps("the table", len(rows), episode.length, self._where(episode.number))
        return np.argsort(np.asarray(rows), kind="stable")

    def _actions_and_states(
        self, table: Columns, order: NDArray[np.int64], path: PurePath, where: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Actions float64 [T, D] and states float32 [T, S] of an episode's rows."""

        def numbers(name: str) -> NDArray[np.float64]:
            return table_of_numbers(column(table, name, path), order, name, where)

        return self._parts.read(numbers, where, len(order))


def _number(reference: DemonstrationReference) -> int:
    """The number of its episode."""
    return parse_item(reference.item)[0]


def _kept(reference: DemonstrationReference) -> StepRange:
    """The steps of its episode that it has."""
    return parse_item(reference.item)[1] or StepRange(0, reference.length)
