"""RLDS episodes as TensorFlow Datasets writes them: one TFRecord an episode, no TensorFlow needed.

<folder>/dataset_info.json                 name, splits, records of each file, names of the files
<folder>/features.json                     the features of a record
<folder>/NAME-SPLIT.tfrecord-00000-of-00016

A record is a `tf.train.Example`. Its features are named by their path (``steps/observation/image``) and hold
the values of all steps one after the other; images are PNG or JPEG files. Whole files may be compressed with
gzip, also under a name that ends with `.gz`, or zlib.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.contracts import Demonstration, Embodiment
from data.errors import InputError
from data.json_record import JsonRecord
from data.sources.bad_demonstrations import check_first
from data.sources.files.source_files import SourceFiles, naming, open_files
from data.sources.instructions import slug
from data.sources.interface import DemonstrationReference
from data.sources.keep_ranges import RANGE_MARK, StepRange, parse_item, range_item
from data.sources.no_ops import NoOpRule, moving_steps
from data.sources.parts.array_checks import check_file, check_steps, decode_picture, stack_frames
from data.sources.rlds.episodes import RldsEpisodes
from data.sources.rlds.features import STEPS, read_features
from data.sources.rlds.tfrecord import Example, RecordReader, record_offsets

_LOG = logging.getLogger(__name__)
_INFO_FILE = "dataset_info.json"
_EXPECTED = "a folder that TensorFlow Datasets wrote"
_MAX_DIGITS = 8  # of the number of records in a file


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
        """By the parts that the settings name."""
        return self._episodes.parts.embodiment

    def no_ops(self) -> NoOpRule:
        """By the names of the action's numbers, or as the settings say."""
        return self._episodes.parts.no_ops

    def references(self) -> list[DemonstrationReference]:
        """Every episode, in the order of splits, files and records.

        All records are read here, because only they hold lengths and tasks; damage is found before any
        encoding. Records that cannot be reached, after a damaged length or the end of the file, are counted
        by `dataset_info.json` and have a fault.

        Raises:
            InputError: Metadata are damaged, a file has more records than they say, or none of the first
                records can be used.
        """
        info = self._info
        self._episodes.check()
        suite = slug(info.text("name"))
        references: list[DemonstrationReference] = []
        left_out: Counter[str] = Counter()
        for split in info.records("splits"):
            number, name = 0, slug(split.text("name"))
            for path, records in self._files(info, split):
                for offset, content in self._records_of(path, records):
                    key, number = f"{name}/episode_{number:06d}", number + 1
                    found = self._references(path, offset, content, key, suite)
                    if isinstance(found, str):
                        left_out[found] += 1
                        continue
                    references += found
                    check_first(references, self._config.skip_bad, str(self._folder))
        if left_out:
            _LOG.info(
                "%s: left out by the settings: %s",
                self._folder,
                ", ".join(f"{count} episodes {why}" for why, count in sorted(left_out.items())),
            )
        if not references and left_out:
            raise InputError(
                f"{self._folder}: the settings leave out all {left_out.total()} episodes "
                f"({', '.join(sorted(left_out))}); correct them"
            )
        if not references:
            raise InputError(
                f"{self._folder / _INFO_FILE}: its splits hold no record; export the data set again"
            )
        return references

    def checked(self, references: Iterable[DemonstrationReference]) -> Iterator[DemonstrationReference]:
        """The references as they are: listing them read the records."""
        return iter(references)

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read one record and decode its images.

        Raises:
            InputError: The record is damaged or lacks a part.
        """
        offset, kept = parse_item(reference.item)
        where = _where(reference.path, offset)
        with self.files.opened(reference.path) as local:
            example = Example(self._records.read(local, offset), where)
        actions, states = self._episodes.numbers(example, where)
        kept = kept or StepRange(0, len(actions))
        frames: dict[str, NDArray[np.uint8]] = {}
        by_file = self._config.keep_ranges.file is not None
        record_key = reference.key.rpartition(RANGE_MARK)[0] if by_file else reference.key
        for camera, name in self._episodes.cameras.of(record_key).items():
            images = example.texts(STEPS + name)
            check_steps(name, len(images), len(actions), where)
            chosen = images[kept.begin : kept.end]
            decoded = [decode_picture(content, f"{where}: {name}") for content in chosen]
            frames[camera] = stack_frames(decoded, name, where)
            if self._config.rotate:
                frames[camera] = frames[camera][:, ::-1, ::-1]
        return reference.demonstration(frames, kept.cut(actions), kept.cut(states))

    @cached_property
    def _episodes(self) -> RldsEpisodes:
        features = read_features(self._record("features.json"))
        return RldsEpisodes(self._config, features, str(self._folder), slug(self._info.text("name")))

    @cached_property
    def _info(self) -> JsonRecord:
        return self._record(_INFO_FILE)

    def _record(self, name: str) -> JsonRecord:
        path = self._folder / name
        return JsonRecord.parse(self.files.read(path, _EXPECTED), str(path))

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

    def _references(
        self, path: PurePath, offset: int, content: bytes | InputError, key: str, suite: str
    ) -> list[DemonstrationReference] | str:
        """A record of a file as references: one, or one for each range of steps that is kept.

        One with a fault, if it cannot be read; or why the settings leave it out.
        """
        where, text = _where(path, offset), ""
        base = DemonstrationReference(
            path=path,
            item=str(offset),
            key=key,
            suite=suite,
            task=slug(text),
            instruction=text,
            length=0,
            cameras=tuple(sorted(self._episodes.cameras.names)),
        )
        try:
            if isinstance(content, InputError):
                raise content
            example, episodes = Example(content, where), self._episodes
            if not episodes.successful(example, where):
                return "without success"
            text = episodes.instruction(example, key, where)
            if not text:
                return "without an instruction"
            base = replace(base, task=slug(text), instruction=text)
            actions, _ = episodes.numbers(example, where)
            base = replace(base, length=len(actions))
            kept = episodes.kept(example, actions, key, where)
            if not kept:
                return "of which no steps are to be kept"
            episodes.check_frames(example, key, len(actions), where)
        except InputError as error:
            return [replace(base, fault=str(error))]
        whole = kept == [StepRange(0, len(actions))]
        by_file = self._config.keep_ranges.file is not None
        return [
            replace(
                base,
                item=base.item if whole else range_item(offset, each),
                key=f"{key}{RANGE_MARK}{each}" if by_file else key,
                length=each.end - each.begin,
                idle=not moving_steps(each.cut(actions), self.no_ops()).any(),
            )
            for each in kept
        ]


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
