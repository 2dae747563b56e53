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

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.sources.array_checks import (
    check_steps,
    decode_picture,
    finite_numbers,
    join_state,
    stack_frames,
)
from data.sources.feature_names import choose_cameras, choose_name
from data.sources.instructions import clean_instruction, slug
from data.sources.interface import DemonstrationReference
from data.sources.lerobot_metadata import LerobotMetadata
from data.sources.parquet import column, read_table
from data.sources.video import read_video
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM

_USUAL_ACTIONS = ("action", "actions")
_USUAL_STATES = ("observation.state", "state")


class LerobotSource:
    """Reads one data set.

    Args:
        config: Cameras, action and state by their names in the data set's `features`.
    """

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._folder = Path(config.source)

    def references(self) -> list[DemonstrationReference]:
        """Every episode, by its number.

        Raises:
            InputError: The metadata are damaged, or lack a requested part.
        """
        cameras = tuple(sorted(self._cameras))
        videos = [name for name in self._cameras.values() if self._metadata.kind(name) == "video"]
        self._names()
        references = [
            DemonstrationReference(
                path=self._metadata.table_path(episode),
                item=str(episode.number),
                key=f"episode_{episode.number:06d}",
                suite=slug(self._folder.absolute().name),
                task=slug(episode.task),
                instruction=clean_instruction(episode.task, f"{self._folder}: episode {episode.number}"),
                length=episode.length,
                cameras=cameras,
                videos=tuple(self._metadata.episode_video(episode, name) for name in videos),
            )
            for episode in self._metadata.episodes
        ]
        if not references:
            raise InputError(f"{self._folder}: its metadata name no episode; export the data set again")
        return references

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read one episode's rows and decode its frames.

        Raises:
            InputError: A part is missing, damaged, or of another length than in the metadata.
        """
        number = int(reference.item)
        where = f"{self._folder}: episode {number}"
        episode = self._metadata.episode(number)
        action, states = self._names()
        images = [name for name in self._cameras.values() if self._metadata.kind(name) == "image"]
        columns = list(dict.fromkeys([action, *states, "timestamp", "frame_index", *images]))
        path = self._metadata.table_path(episode)
        table = read_table(path, columns, [("episode_index", "=", number)])
        order = np.argsort(np.asarray(column(table, "frame_index", path)), kind="stable")
        check_steps("the table", len(order), episode.length, where)
        actions = self._table(column(table, action, path), order, action, ACTION_DIM, where)
        parts = [self._numbers(column(table, name, path), order, name, where) for name in states]
        times = np.asarray(column(table, "timestamp", path), np.float64)[order]
        frames: dict[str, NDArray[np.uint8]] = {}
        for camera, name in self._cameras.items():
            if name in images:
                frames[camera] = _stored_images(column(table, name, path), order, name, where)
            else:
                begin = episode.video_begin(name)
                tolerance = 0.25 / self._metadata.fps
                frames[camera] = read_video(
                    self._metadata.episode_video(episode, name), begin + times, tolerance
                )
            if self._config.rotate:
                frames[camera] = frames[camera][:, ::-1, ::-1]
        return Demonstration(
            key=reference.key,
            suite=reference.suite,
            task=reference.task,
            instruction=reference.instruction,
            frames=frames,
            actions=actions,
            states=join_state(parts, states, STATE_DIM, where, episode.length),
        )

    @cached_property
    def _metadata(self) -> LerobotMetadata:
        return LerobotMetadata.load(self._folder)

    @cached_property
    def _cameras(self) -> dict[str, str]:
        return choose_cameras(self._metadata.cameras, self._config.cameras.requested(), str(self._folder))

    def _names(self) -> tuple[str, list[str]]:
        """Names of the action and of the parts of the state."""
        numbers = self._metadata.numbers
        action = choose_name(numbers, self._config.action, _USUAL_ACTIONS, "action=NAME", str(self._folder))
        if self._config.state is None:
            return action, [choose_name(numbers, None, _USUAL_STATES, "state=[NAME]", str(self._folder))]
        where = str(self._folder)
        return action, [choose_name(numbers, name, (), "state=[NAME]", where) for name in self._config.state]

    def _numbers(
        self, values: Sequence[Any], order: NDArray[np.int64], name: str, where: str
    ) -> NDArray[np.float64]:
        width = self._metadata.width(name)
        return self._table(values, order, name, width, where)

    @staticmethod
    def _table(
        values: Sequence[Any], order: NDArray[np.int64], name: str, width: int, where: str
    ) -> NDArray[np.float64]:
        try:
            table = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:  # rows of different lengths, or no numbers
            raise InputError(f"{where}: {name} is no table of numbers ({error}); export it again") from error
        table = table[:, None] if table.ndim == 1 else table
        return finite_numbers(table[order], name, width, where, None)


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
