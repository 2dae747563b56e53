"""Fields of WebDataset's samples: which are cameras, action, state, instruction, and one episode of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.errors import InputError
from data.sources.parts.array_checks import check_steps, decode_picture, stack_frames
from data.sources.parts.feature_names import choose_cameras, choose_name, choose_parts
from data.sources.parts.step_parts import NumbersFeature, StepParts, resolve_parts
from data.sources.tars.samples import Sample, SampleReader, kind_of_frames
from data.sources.video import decode_video

_USUAL = {
    "action": ("action.npy", "actions.npy", "json:action", "json:actions"),
    "state": ("state.npy", "states.npy", "json:state", "json:states", "json:observation/state"),
}
_USUAL_PARTS = {*_USUAL["action"], *_USUAL["state"]}
_USUAL_INSTRUCTIONS = ("json:instruction", "json:language_instruction", "json:task", "txt", "instruction.txt")
_ONLY_FRAMES = "image"  # what a member without a name of its own (`KEY.jpg`) is called


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields that are read.

    Attributes:
        cameras: Our camera -> field.
        parts: Of actions and states.
        instructions: Fields of the instruction.
        of_episodes: Whether each sample is a whole episode, and not a step.
    """

    cameras: Mapping[str, str]
    parts: StepParts
    instructions: Sequence[str]
    of_episodes: bool

    @classmethod
    def choose(cls, sample: Sample, reader: SampleReader, config: SourceConfig, robot: str) -> Fields:
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
        requested_parts = [*(config.action or ()), *(config.state or ())]
        named = {part if isinstance(part, str) else part.name for part in requested_parts}
        tables = {name: reader.numbers(name) for name in numbers if name in (named | _USUAL_PARTS)}
        chosen = [each if isinstance(each, str) else each.name for each in config.action or ()]
        first = choose_parts(numbers, chosen or None, _USUAL["action"], "action", where)[0]
        videos = any(kind_of_frames(name) == "video" for name in cameras.values())
        of_episodes = videos or tables[first].ndim > 1
        features = {name: NumbersFeature(_width(tables.get(name), of_episodes)) for name in numbers}
        return cls(
            cameras=cameras,
            parts=resolve_parts(config, {"action": features, "state": features}, _USUAL, where, robot),
            instructions=_instructions(texts, config, where),
            of_episodes=of_episodes,
        )


def _instructions(texts: Sequence[str], config: SourceConfig, where: str) -> list[str]:
    names = config.instruction
    if names is None:
        return [choose_name(texts, None, _USUAL_INSTRUCTIONS, "instruction=NAME", where)]
    if not names:
        raise InputError("instruction=[] names no instruction; leave the setting out, or name some")
    return [choose_name(texts, name, (), "instruction=NAME", where) for name in names]


def _width(table: NDArray[np.float64] | None, of_episodes: bool) -> int:
    """Numbers in a step of a field; 0 where its shape is none of a step's."""
    if table is None:
        return 0
    if of_episodes:
        return {1: 1, 2: table.shape[-1]}.get(table.ndim, 0)
    return table.size if table.ndim < 2 else 0


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
        for name in self.fields.parts.features:
            self.numbers.setdefault(name, []).append(self._table(reader, name))
        for name in self.fields.instructions:
            self.texts += reader.texts(name)
        for name in self.fields.cameras.values():
            reader.check(name)

    def add_frames(self, reader: SampleReader) -> None:
        """Decode the frames of a sample whose numbers were added.

        Raises:
            InputError: They are damaged, or not as many as time steps.
        """
        steps = len(self.numbers[self.fields.parts.features[0]][-1])
        for camera, name in self.fields.cameras.items():
            where = f"{reader.where}: {name}"
            if kind_of_frames(name) == "video":
                frames = decode_video(reader.content(name), steps, where)
            else:
                frames = decode_picture(reader.content(name), where)[None]
            check_steps(name, len(frames), steps, reader.where)
            self.frames.setdefault(camera, []).append(frames)

    def actions_and_states(self, where: str) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Actions float64 [T, D] and states float32 [T, S].

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
        return self.fields.parts.read(tables.__getitem__, where)

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
