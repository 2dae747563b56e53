"""RLDS episodes as TensorFlow Datasets writes them: one TFRecord an episode, no TensorFlow needed.

<folder>/dataset_info.json                 name, splits, records of each file, names of the files
<folder>/features.json                     the features of a record
<folder>/NAME-SPLIT.tfrecord-00000-of-00016

A record is a `tf.train.Example`. Its features are named by their path (``steps/observation/image``) and hold
the values of all steps one after the other; images are PNG or JPEG files. Whole files may be compressed with
gzip, also under a name that ends with `.gz`, or zlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.contracts import DEFAULT_EMBODIMENT, Demonstration, Embodiment
from data.errors import InputError
from data.json_record import JsonRecord
from data.sources.array_checks import (
    OTHER_ACTION,
    OTHER_STATE,
    check_file,
    check_steps,
    decode_picture,
    join_action,
    join_state,
    stack_frames,
)
from data.sources.bad_demonstrations import check_first
from data.sources.feature_names import choose_cameras, choose_name, choose_parts
from data.sources.instructions import choose_text, clean_instruction, slug
from data.sources.interface import DemonstrationReference
from data.sources.no_ops import moving_steps
from data.sources.rlds_features import STEPS, Feature, read_features
from data.sources.source_files import SourceFiles, naming, open_files
from data.sources.tfrecord import Example, RecordReader, record_offsets
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM

_USUAL_ACTIONS = ("action",)
_USUAL_STATES = ("observation/state",)
_USUAL_INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
)
_EXPECTED = "a folder that TensorFlow Datasets wrote"
_MAX_DIGITS = 8  # of the number of records in a file


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of the features: of those of a step without `steps/`."""

    cameras: Mapping[str, str]
    actions: Sequence[str]
    states: Sequence[str]
    instruction: str


class RldsSource:
    """Reads one data set (one version's folder), all of its splits; `data.prepare` makes its own ones.

    Args:
        config: Cameras, action, state and instruction as paths below `steps`, or (`episode_metadata/...`) as
            features of an episode.
        files: Of the source; None: opened here.
    """

    def __init__(self, config: SourceConfig, files: SourceFiles | None = None) -> None:
        self._config = config
        self.files = open_files(config) if files is None else files
        self._folder = self.files.root
        self._records = RecordReader()

    def embodiment(self) -> Embodiment:
        """LIBERO's."""
        return DEFAULT_EMBODIMENT

    def references(self) -> list[DemonstrationReference]:
        """Every episode, in the order of splits, files and records.

        All records are read here, because only they hold lengths and tasks; damage is found before any
        encoding. Records that cannot be reached, after a damaged length or the end of the file, are counted
        by `dataset_info.json` and have a fault.

        Raises:
            InputError: Metadata are damaged, a file has more records than they say, or none of the first
                records can be used.
        """
        info_path = self._folder / "dataset_info.json"
        info = JsonRecord.parse(self.files.read(info_path, _EXPECTED), str(info_path))
        self._check_widths()
        suite = slug(info.text("name"))
        references: list[DemonstrationReference] = []
        for split in info.records("splits"):
            first, name = len(references), slug(split.text("name"))
            for path, records in self._files(info, split):
                for offset, content in self._records_of(path, records):
                    key = f"{name}/episode_{len(references) - first:06d}"
                    references.append(self._reference(path, offset, content, key, suite))
                    check_first(references, self._config.skip_bad, str(self._folder))
        if not references:
            raise InputError(f"{info_path}: its splits hold no record; export the data set again")
        return references

    def checked(self, references: Iterable[DemonstrationReference]) -> Iterator[DemonstrationReference]:
        """The references as they are: listing them read the records."""
        return iter(references)

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read one record and decode its images.

        Raises:
            InputError: The record is damaged or lacks a part.
        """
        where = _where(reference.path, int(reference.item))
        with self.files.opened(reference.path) as local:
            example = Example(self._records.read(local, int(reference.item)), where)
        actions, states = self._actions_and_states(example, where)
        frames: dict[str, NDArray[np.uint8]] = {}
        for camera, name in self._names.cameras.items():
            images = example.texts(STEPS + name)
            check_steps(name, len(images), reference.length, where)
            decoded = [decode_picture(content, f"{where}: {name}") for content in images]
            frames[camera] = stack_frames(decoded, name, where)
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
    def _features(self) -> dict[str, Feature]:
        path = self._folder / "features.json"
        return read_features(JsonRecord.parse(self.files.read(path, _EXPECTED), str(path)))

    @cached_property
    def _names(self) -> _Names:
        where, config = str(self._folder), self._config

        def of_kind(kind: str, of_step: bool = False) -> list[str]:
            features = self._features.items()
            return [
                name
                for name, feature in features
                if feature.kind == kind and (feature.of_step or not of_step)
            ]

        numbers = of_kind("numbers", of_step=True)
        return _Names(
            cameras=choose_cameras(of_kind("image", of_step=True), config.cameras.requested(), where),
            actions=choose_parts(numbers, config.action, _USUAL_ACTIONS, "action", where),
            states=choose_parts(of_kind("numbers"), config.state, _USUAL_STATES, "state", where),
            instruction=choose_name(
                of_kind("text"), config.instruction, _USUAL_INSTRUCTIONS, "instruction=NAME", where
            ),
        )

    def _check_widths(self) -> None:
        """Refuse parts that are not 7 and 8 numbers together, before any record is read (InputError)."""
        for names, width, remedy in (
            (self._names.actions, ACTION_DIM, OTHER_ACTION),
            (self._names.states, STATE_DIM, OTHER_STATE),
        ):
            widths = [self._features[name].width for name in names]
            if names and all(widths) and sum(widths) != width:
                raise InputError(
                    f"{self._folder}: {' + '.join(names)} has {sum(widths)} numbers a step, expected "
                    f"{width}; {remedy}"
                )

    def _files(self, info: JsonRecord, split: JsonRecord) -> Iterator[tuple[PurePath, int]]:
        """Each file of a split and the number of records in it."""
        counts = split.texts("shardLengths")
        template = (
            split.text("filepathTemplate")
            if "filepathTemplate" in split
            else "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        )
        values = {
            "DATASET": info.text("name"),
            "SPLIT": split.text("name"),
            "FILEFORMAT": info.text("fileFormat", ("tfrecord",)) if "fileFormat" in info else "tfrecord",
        }
        for number, count in enumerate(counts):
            shard = {"SHARD_X_OF_Y": f"{number:05d}-of-{len(counts):05d}", "SHARD_INDEX": f"{number:05d}"}
            name = template
            for field, value in (values | shard).items():
                name = name.replace("{" + field + "}", value)
            plain_count = count.isdecimal() and len(count) <= _MAX_DIGITS
            if not plain_count or "/" in name or "\\" in name or "{" in name or name.startswith("."):
                raise InputError(
                    f"{self._folder}: dataset_info.json names the file {name[:80]!r} of {count[:20]!r} "
                    "records, expected a plain name and a number; copy the data set again"
                )
            path = self._folder / name
            compressed = path.with_name(f"{name}.gz")
            is_compressed = not self.files.is_file(path) and self.files.is_file(compressed)
            yield compressed if is_compressed else path, int(count)

    def _records_of(self, path: PurePath, expected: int) -> Iterator[tuple[int, bytes | InputError]]:
        """As `_records`, of a file of the source."""
        with self.files.opened(path) as local:
            for offset, content in _records(local, expected):
                damaged = isinstance(content, InputError)
                yield offset, naming(content, local, path) if damaged else content

    def _reference(
        self, path: PurePath, offset: int, content: bytes | InputError, key: str, suite: str
    ) -> DemonstrationReference:
        """A record of a file, or why it cannot be read, as a reference."""
        where, fault, text, length, idle = _where(path, offset), "", "", 0, False
        try:
            if isinstance(content, InputError):
                raise content
            example = Example(content, where)
            text = self._instruction(example, where)
            actions, _ = self._actions_and_states(example, where)
            length, idle = len(actions), not moving_steps(actions).any()
            for name in self._names.cameras.values():
                check_steps(name, len(example.texts(STEPS + name)), length, where)
        except InputError as error:
            fault = str(error)
        return DemonstrationReference(
            path=path,
            item=str(offset),
            key=key,
            suite=suite,
            task=slug(text),
            instruction=text,
            length=length,
            cameras=tuple(sorted(self._names.cameras)),
            fault=fault,
            idle=idle,
        )

    def _instruction(self, example: Example, where: str) -> str:
        texts = example.texts(self._features[self._names.instruction].path)
        decoded = [text.decode("utf-8", "replace") for text in texts]
        return clean_instruction(choose_text(decoded, self._config.several_instructions, where), where)

    def _actions_and_states(
        self, example: Example, where: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Actions float64 [T, 7] and states float32 [T, 8]; T of the action's first part."""
        names = self._names
        parts = [self._numbers(example, name, where) for name in names.actions]
        steps = len(parts[0])
        if not steps:
            raise InputError(f"{where}: no time steps, expected at least one; export the data set again")
        actions = join_action(parts, names.actions, ACTION_DIM, where, steps)
        states = [self._numbers(example, name, where, steps) for name in names.states]
        return actions, join_state(states, names.states, STATE_DIM, where, steps)

    def _numbers(self, example: Example, name: str, where: str, steps: int = 0) -> NDArray[Any]:
        """A feature's values as [T, width]; those of an episode are repeated for its `steps`."""
        feature = self._features[name]
        flat = example.numbers(feature.path)
        if not feature.width or len(flat) % feature.width:
            raise InputError(
                f"{where}: {name} holds {len(flat)} numbers, features.json says {feature.width} a step; "
                "export it again"
            )
        table = flat.reshape(-1, feature.width)
        return table if feature.of_step or len(table) != 1 else table.repeat(steps, axis=0)


def _where(path: PurePath, offset: int) -> str:
    return f"{path}: record at offset {offset}"


def _records(path: Path, expected: int) -> Iterator[tuple[int, bytes | InputError]]:
    """Offset and content of the records of a file, `expected` in all; an error for each that cannot be read.

    Raises:
        InputError: There are more.
    """
    found, offset = 0, 0
    error: InputError | None = None
    try:
        check_file(path, "a TFRecord file")
        for offset, content in record_offsets(path):
            found += 1
            yield offset, content
        check_steps("the file (in records)", found, expected, str(path))
    except InputError as reason:
        error = reason
    if error is not None and found >= expected:
        raise error
    for _ in range(found, expected):
        assert error is not None  # `check_steps` raised it
        yield offset, error
