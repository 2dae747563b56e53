"""Fields of WebDataset's samples: which are cameras, action, state, instruction, and one episode of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.errors import InputError
from data.sources.array_checks import check_steps, decode_picture, join_action, join_state, stack_frames
from data.sources.feature_names import choose_cameras, choose_name, choose_parts
from data.sources.tars.samples import Sample, SampleReader, kind_of_frames
from data.sources.video import decode_video
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM

_USUAL_ACTIONS = ("action.npy", "actions.npy", "json:action", "json:actions")
_USUAL_STATES = ("state.npy", "states.npy", "json:state", "json:states", "json:observation/state")
_USUAL_INSTRUCTIONS = ("json:instruction", "json:language_instruction", "json:task", "txt", "instruction.txt")
_ONLY_FRAMES = "image"  # what a member without a name of its own (`KEY.jpg`) is called


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields that are read.

    Attributes:
        cameras: Our camera -> field.
        actions, states: The parts, in order.
        instruction: Field of the instruction.
        of_episodes: Whether each sample is a whole episode, and not a step.
    """

    cameras: Mapping[str, str]
    actions: Sequence[str]
    states: Sequence[str]
    instruction: str
    of_episodes: bool

    @classmethod
    def choose(cls, sample: Sample, reader: SampleReader, config: SourceConfig) -> Fields:
        """The fields that the settings name, or the usual ones, by what one sample holds.

        A sample is an episode where the first part of its action is a table, or a video is among its members.

        Raises:
            InputError: One is missing or ambiguous, or the sample cannot be read.
        """
        where = reader.where
        numbers, texts = reader.fields()
        available = {_camera_name(name): name for name in sample.members if kind_of_frames(name)}
        requested = config.cameras.requested()
        if requested:  # by the whole rest of the name
            cameras = choose_cameras(list(available.values()), requested, where)
        else:
            chosen = choose_cameras(list(available), {}, where)
            cameras = {camera: available[name] for camera, name in chosen.items()}
        actions = choose_parts(numbers, config.action, _USUAL_ACTIONS, "action", where)
        videos = any(kind_of_frames(name) == "video" for name in cameras.values())
        return cls(
            cameras=cameras,
            actions=actions,
            states=choose_parts(numbers, config.state, _USUAL_STATES, "state", where),
            instruction=choose_name(
                texts, config.instruction, _USUAL_INSTRUCTIONS, "instruction=NAME", where
            ),
            of_episodes=videos or reader.numbers(actions[0]).ndim > 1,
        )


Tables = dict[str, list[NDArray[np.float64]]]
Frames = dict[str, list[NDArray[np.uint8]]]


@dataclass
class Recording:
    """Numbers, texts and frames of one episode, added sample by sample.

    Attributes:
        fields: What is read.
        texts: Instructions, in order.
        numbers: By field, tables float64 [n, its width] of each sample.
        frames: By camera, uint8 [n, H, W, 3] of each sample.
    """

    fields: Fields
    texts: list[str] = field(default_factory=list[str])
    numbers: Tables = field(default_factory=Tables)
    frames: Frames = field(default_factory=Frames)

    def add_numbers(self, reader: SampleReader) -> None:
        """Add what a sample has besides frames, whose members only have to be there.

        Raises:
            InputError: A field is missing or of another kind.
        """
        for name in dict.fromkeys([*self.fields.actions, *self.fields.states]):
            self.numbers.setdefault(name, []).append(self._table(reader, name))
        self.texts += reader.texts(self.fields.instruction)
        for name in self.fields.cameras.values():
            reader.check(name)

    def add_frames(self, reader: SampleReader) -> None:
        """Decode the frames of a sample whose numbers were added.

        Raises:
            InputError: They are damaged, or not as many as time steps.
        """
        steps = len(self.numbers[self.fields.actions[0]][-1])
        for camera, name in self.fields.cameras.items():
            where = f"{reader.where}: {name}"
            if kind_of_frames(name) == "video":
                frames = decode_video(reader.content(name), steps, where)
            else:
                frames = decode_picture(reader.content(name), where)[None]
            check_steps(name, len(frames), steps, reader.where)
            self.frames.setdefault(camera, []).append(frames)

    def actions_and_states(self, where: str) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Actions float64 [T, 7] and states float32 [T, 8].

        Raises:
            InputError: Of another width or length, or not finite.
        """
        tables: dict[str, NDArray[np.float64]] = {}
        for name, parts in self.numbers.items():
            widths = {part.shape[1] for part in parts}
            if len(widths) != 1:
                raise InputError(
                    f"{where}: {name} has {sorted(widths)[:3]} numbers in different steps, expected as many "
                    "in each; export the demonstration again"
                )
            tables[name] = np.concatenate(parts)
        actions, states = self.fields.actions, self.fields.states
        steps = len(tables[actions[0]])
        if not steps:
            raise InputError(f"{where}: no time steps, expected at least one; export the data set again")
        return (
            join_action([tables[name] for name in actions], actions, ACTION_DIM, where, steps),
            join_state([tables[name] for name in states], states, STATE_DIM, where, steps),
        )

    def stacked_frames(self, rotate: bool, where: str) -> dict[str, NDArray[np.uint8]]:
        """Frames uint8 [T, H, W, 3] by camera (InputError: of several sizes)."""
        stacked: dict[str, NDArray[np.uint8]] = {}
        for camera, parts in self.frames.items():
            frames = stack_frames([frame for part in parts for frame in part], camera, where)
            stacked[camera] = frames[:, ::-1, ::-1] if rotate else frames
        return stacked

    def _table(self, reader: SampleReader, name: str) -> NDArray[np.float64]:
        """A field as [n, its width]: of a step one row, of an episode one row a step."""
        value = reader.numbers(name)
        if self.fields.of_episodes and value.ndim in (1, 2):
            return value[:, None] if value.ndim == 1 else value
        if not self.fields.of_episodes and value.ndim < 2:
            return value.reshape(1, -1)
        expected = "[T, D], for each sample is an episode" if self.fields.of_episodes else "[D], of one step"
        raise InputError(
            f"{reader.where}: {name} has shape {value.shape}, expected {expected}; export the demonstration "
            "again"
        )


def _camera_name(name: str) -> str:
    """The name of a camera's member without the kind of file: `wrist` of `wrist.jpg`."""
    return re.sub(r"\.?[^.]*$", "", name) or _ONLY_FRAMES
