"""RLDS episodes as TensorFlow Datasets writes them: one TFRecord an episode, no TensorFlow needed.

<folder>/dataset_info.json                 name, splits, records of each file, names of the files
<folder>/features.json                     the features of a record
<folder>/NAME-SPLIT.tfrecord-00000-of-00016

A record is a `tf.train.Example`. Its features are named by their path (``steps/observation/image``) and hold
the values of all steps one after the other; images are PNG or JPEG files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.json_record import JsonRecord
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
from data.sources.tfrecord import Example, read_record, record_offsets
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM

_STEPS = "steps/"
_USUAL_ACTIONS = ("action",)
_USUAL_STATES = ("observation/state",)
_USUAL_INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One feature of a step: `kind` is `image`, `text` or `numbers`; `width` is the numbers in one step."""

    kind: str
    width: int


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of the features (without `steps/`)."""

    cameras: Mapping[str, str]
    action: str
    states: tuple[str, ...]
    instruction: str


class RldsSource:
    """Reads one data set (one version's folder), all of its splits; `data.prepare` makes its own ones.

    Args:
        config: Cameras, action, state and instruction as paths below `steps`.
    """

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._folder = Path(config.source)

    def references(self) -> list[DemonstrationReference]:
        """Every episode, in the order of splits, files and records.

        All records are read here, because only they hold lengths and tasks; damage is found before any
        encoding.

        Raises:
            InputError: Metadata or a record are damaged, or a file has another number of records.
        """
        info_path = self._folder / "dataset_info.json"
        info = JsonRecord.parse(_read(info_path), str(info_path))
        cameras = tuple(sorted(self._names.cameras))
        suite = slug(info.text("name"))
        references: list[DemonstrationReference] = []
        for split in info.records("splits"):
            number = 0
            for path, records in self._files(info, split):
                before = number
                for offset, content in record_offsets(path):
                    example = Example(content, f"{path}: record at offset {offset}")
                    text = self._instruction(example, f"{path}: record at offset {offset}")
                    references.append(
                        DemonstrationReference(
                            path=path,
                            item=str(offset),
                            key=f"{slug(split.text('name'))}/episode_{number:06d}",
                            suite=suite,
                            task=slug(text),
                            instruction=text,
                            length=self._steps(example, f"{path}: record at offset {offset}"),
                            cameras=cameras,
                        )
                    )
                    number += 1
                check_steps("the file (in records)", number - before, records, str(path))
        if not references:
            raise InputError(f"{info_path}: its splits hold no record; export the data set again")
        return references

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read one record and decode its images.

        Raises:
            InputError: The record is damaged or lacks a part.
        """
        where = f"{reference.path}: record at offset {reference.item}"
        example = Example(read_record(reference.path, int(reference.item)), where)
        names, steps = self._names, reference.length
        parts = [self._numbers(example, name, where) for name in names.states]
        frames: dict[str, NDArray[np.uint8]] = {}
        for camera, name in names.cameras.items():
            images = example.texts(_STEPS + name)
            check_steps(name, len(images), steps, where)
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
            actions=finite_numbers(
                self._numbers(example, names.action, where), names.action, ACTION_DIM, where, steps
            ),
            states=join_state(parts, names.states, STATE_DIM, where, steps),
        )

    @cached_property
    def _features(self) -> dict[str, _Leaf]:
        path = self._folder / "features.json"
        leaves = dict(_leaves(JsonRecord.parse(_read(path), str(path)), ""))
        return {name.removeprefix(_STEPS): leaf for name, leaf in leaves.items() if name.startswith(_STEPS)}

    @cached_property
    def _names(self) -> _Names:
        where, config = str(self._folder), self._config

        def of_kind(kind: str) -> list[str]:
            return [name for name, leaf in self._features.items() if leaf.kind == kind]

        numbers = of_kind("numbers")
        states = [(name,) for name in config.state] if config.state is not None else [_USUAL_STATES]
        return _Names(
            cameras=choose_cameras(of_kind("image"), config.cameras.requested(), where),
            action=choose_name(numbers, config.action, _USUAL_ACTIONS, "action=NAME", where),
            states=tuple(choose_name(numbers, None, usual, "state=[NAME]", where) for usual in states),
            instruction=choose_name(
                of_kind("text"), config.instruction, _USUAL_INSTRUCTIONS, "instruction=NAME", where
            ),
        )

    def _files(self, info: JsonRecord, split: JsonRecord) -> Iterator[tuple[Path, int]]:
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
            if not count.isdecimal() or "/" in name or "\\" in name or "{" in name or name.startswith("."):
                raise InputError(
                    f"{self._folder}: dataset_info.json names the file {name[:80]!r} of {count[:20]!r} "
                    "records, expected a plain name and a number; copy the data set again"
                )
            yield self._folder / name, int(count)

    def _instruction(self, example: Example, where: str) -> str:
        texts = set(example.texts(_STEPS + self._names.instruction))
        if len(texts) != 1:
            raise InputError(f"{where}: {len(texts)} different instructions in one episode, expected one")
        return clean_instruction(texts.pop().decode("utf-8", "replace"), where)

    def _steps(self, example: Example, where: str) -> int:
        steps = len(self._numbers(example, self._names.action, where))
        if not steps:
            raise InputError(f"{where}: no time steps, expected at least one; export the data set again")
        return steps

    def _numbers(self, example: Example, name: str, where: str) -> NDArray[np.float64]:
        """A feature's values as [T, width]."""
        flat = example.numbers(_STEPS + name).astype(np.float64)
        width = self._features[name].width
        if not width or len(flat) % width:
            raise InputError(
                f"{where}: {name} holds {len(flat)} numbers, features.json says {width} a step; "
                "export it again"
            )
        return flat.reshape(-1, width)


def _leaves(feature: JsonRecord, path: str) -> Iterator[tuple[str, _Leaf]]:
    """All features below one of `features.json`, by path."""
    if "featuresDict" in feature:
        for name, member in feature.record("featuresDict").members("features").items():
            yield from _leaves(member, f"{path}/{name}" if path else name)
    elif "sequence" in feature:
        yield from _leaves(feature.record("sequence").record("feature"), path)
    elif "image" in feature:
        yield path, _Leaf("image", 0)
    elif "text" in feature:
        yield path, _Leaf("text", 0)
    elif "tensor" in feature:
        tensor = feature.record("tensor")
        kind = "text" if tensor.text("dtype") in ("string", "object") else "numbers"
        plain = "encoding" not in tensor or tensor.text("encoding").lower() in ("none", "1")
        if plain:  # a tensor packed into bytes cannot be used
            yield path, _Leaf(kind, _width(tensor))


def _width(tensor: JsonRecord) -> int:
    """Numbers in one step: 1 for a scalar, 0 where the size is not fixed."""
    shape = tensor.record("shape") if "shape" in tensor else None
    if shape is None or "dimensions" not in shape:
        return 1
    sides = shape.texts("dimensions")
    fixed = len(sides) == 1 and sides[0].isdecimal()
    return int(sides[0]) if fixed else 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); expected a folder that TensorFlow Datasets wrote"
        ) from error
