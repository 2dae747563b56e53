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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import PurePath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.contracts import DEFAULT_EMBODIMENT, Demonstration, Embodiment
from data.errors import InputError
from data.sources.array_checks import (
    check_steps,
    decode_picture,
    join_action,
    join_state,
    missing_file,
    stack_frames,
)
from data.sources.feature_names import choose_cameras, choose_parts
from data.sources.instructions import choose_text, clean_instruction, slug
from data.sources.interface import DemonstrationReference
from data.sources.lerobot_metadata import LerobotEpisode, LerobotMetadata
from data.sources.no_ops import moving_steps
from data.sources.parquet import Columns, Filter, column, read_table
from data.sources.source_files import SourceFiles, open_files
from data.sources.video import read_video
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM

_USUAL_ACTIONS = ("action", "actions")
_USUAL_STATES = ("observation.state", "state")
_MAX_ROWS = 100_000  # that are in memory for the checks


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
        """LIBERO's."""
        return DEFAULT_EMBODIMENT

    def references(self) -> list[DemonstrationReference]:
        """Every episode, by its number.

        Raises:
            InputError: The metadata are damaged, or lack a requested part.
        """
        self._names()
        references = [self._reference(episode) for episode in self._metadata.episodes]
        if not references:
            raise InputError(f"{self._folder}: its metadata name no episode; export the data set again")
        return references

    def checked(self, references: Iterable[DemonstrationReference]) -> Iterator[DemonstrationReference]:
        """The same references, with the faults of their files, actions and states; no frame is decoded.

        Each table is read once, without its frames, some episodes at a time.
        """
        for group in _groups_of_a_table(references):
            path, numbers = group[0].path, [int(reference.item) for reference in group]
            rows: dict[int, Columns] | InputError
            try:
                between = [("episode_index", ">=", min(numbers)), ("episode_index", "<=", max(numbers))]
                rows = _split_by_episode(self._read_rows(path, ["episode_index"], between), path)
            except InputError as error:
                rows = error
            for reference in group:
                yield reference if reference.fault else self._checked(reference, rows)

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read one episode's rows and decode its frames.

        Raises:
            InputError: A part is missing, damaged, or of another length than in the metadata.
        """
        number = int(reference.item)
        episode, where = self._metadata.episode(number), self._where(number)
        images = [name for name in self._cameras.values() if self._metadata.kind(name) == "image"]
        path = self._metadata.table_path(episode)
        table = self._read_rows(path, images, [("episode_index", "=", number)])
        order = self._order(table, episode, path)
        actions, states = self._actions_and_states(table, order, path, where)
        times = np.asarray(column(table, "timestamp", path), np.float64)[order]
        frames: dict[str, NDArray[np.uint8]] = {}
        for camera, name in self._cameras.items():
            if name in images:
                frames[camera] = _stored_images(column(table, name, path), order, name, where)
            else:
                begin = episode.video_begin(name)
                tolerance = 0.25 / self._metadata.fps
                with self.files.opened(self._metadata.episode_video(episode, name)) as video:
                    frames[camera] = read_video(video, begin + times, tolerance)
            if self._config.rotate:
                frames[camera] = frames[camera][:, ::-1, ::-1]
        return Demonstration(
            key=reference.key,
            suite=reference.suite,
            task=reference.task,
            instruction=reference.instruction,
            frames=frames,
            actions=actions,
            states=states,
        )

    @cached_property
    def _metadata(self) -> LerobotMetadata:
        return LerobotMetadata.load(self.files)

    @cached_property
    def _cameras(self) -> dict[str, str]:
        return choose_cameras(self._metadata.cameras, self._config.cameras.requested(), str(self._folder))

    def _where(self, number: int) -> str:
        return f"{self._folder}: episode {number}"

    def _reference(self, episode: LerobotEpisode) -> DemonstrationReference:
        videos = [name for name in self._cameras.values() if self._metadata.kind(name) == "video"]
        where, task, instruction, fault = self._where(episode.number), "", "", ""
        try:
            task = choose_text(episode.tasks, self._config.several_instructions, where)
            instruction = clean_instruction(task, where)
        except InputError as error:
            fault = str(error)
        return DemonstrationReference(
            path=self._metadata.table_path(episode),
            item=str(episode.number),
            key=f"episode_{episode.number:06d}",
            suite=slug(self.files.name),
            task=slug(task),
            instruction=instruction,
            length=episode.length,
            cameras=tuple(sorted(self._cameras)),
            videos=tuple(self._metadata.episode_video(episode, name) for name in videos),
            fault=fault,
        )

    def _checked(
        self, reference: DemonstrationReference, rows: dict[int, Columns] | InputError
    ) -> DemonstrationReference:
        """A reference with what its rows tell; `rows` are those of its table, or why that cannot be read."""
        number, path = int(reference.item), reference.path
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
        return replace(reference, idle=not moving_steps(actions).any())

    def _read_rows(self, path: PurePath, others: list[str], filters: list[Filter]) -> Columns:
        """The columns of numbers, and others, of the rows that match."""
        actions, states = self._names()
        names = [*actions, *states, "timestamp", "frame_index", *others]
        with self.files.opened(path) as table:
            return read_table(table, list(dict.fromkeys(names)), filters)

    def _order(self, table: Columns, episode: LerobotEpisode, path: PurePath) -> NDArray[np.int64]:
        """The order in time of an episode's rows; as many as its metadata say (InputError)."""
        rows = column(table, "frame_index", path) if table else []
        check_steps("the table", len(rows), episode.length, self._where(episode.number))
        return np.argsort(np.asarray(rows), kind="stable")

    def _names(self) -> tuple[list[str], list[str]]:
        """Names of the parts of the action and of the state."""
        where, numbers, config = str(self._folder), self._metadata.numbers, self._config
        actions = choose_parts(numbers, config.action, _USUAL_ACTIONS, "action", where)
        return actions, choose_parts(numbers, config.state, _USUAL_STATES, "state", where)

    def _actions_and_states(
        self, table: Columns, order: NDArray[np.int64], path: PurePath, where: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Actions float64 [T, 7] and states float32 [T, 8] of an episode's rows."""
        actions, states = self._names()

        def parts(names: list[str]) -> list[NDArray[np.float64]]:
            return [_numbers(column(table, name, path), order, name, where) for name in names]

        return (
            join_action(parts(actions), actions, ACTION_DIM, where, len(order)),
            join_state(parts(states), states, STATE_DIM, where, len(order)),
        )


def _groups_of_a_table(
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


def _split_by_episode(table: Columns, path: PurePath) -> dict[int, Columns]:
    """The rows of a table by their `episode_index`."""
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(column(table, "episode_index", path)):
        rows.setdefault(number, []).append(row)
    return {
        number: {name: [values[row] for row in chosen] for name, values in table.items()}
        for number, chosen in rows.items()
    }


def _numbers(values: Sequence[Any], order: NDArray[np.int64], name: str, where: str) -> NDArray[np.float64]:
    """A feature of numbers in the order of time, float64 [T, its width]."""
    try:
        table = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:  # rows of different lengths, or no numbers
        raise InputError(f"{where}: {name} is no table of numbers ({error}); export it again") from error
    return (table[:, None] if table.ndim == 1 else table)[order]


def _stored_images(
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
