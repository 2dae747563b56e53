"""Demonstrations in WebDataset's tar files, whose samples are the steps of episodes, or whole episodes.

Steps of one episode follow each other, also from one file into the next; which belong together is told by
their keys (`episode_0001_000012`: all before the last `_` or `-`) or by a field
(`episode_field=json:episode`). A reference holds the ranges of bytes that its samples take, so that any
process reads an episode on its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path, PurePath
from typing import BinaryIO

from data.config import SourceConfig
from data.contracts import Demonstration, Embodiment
from data.errors import InputError
from data.sources.bad_demonstrations import check_first
from data.sources.files.source_files import TAR_SUFFIX, SourceFiles, folder_and_pattern, open_files
from data.sources.instructions import choose_text, clean_instruction, slug
from data.sources.interface import DemonstrationReference
from data.sources.no_ops import NoOpRule, moving_steps
from data.sources.tars.episodes import EpisodeGrouping, ListedEpisode
from data.sources.tars.fields import Fields, Recording
from data.sources.tars.samples import Sample, SampleReader, read_samples
from data.sources.tars.tar_members import DamagedTarError
from data.unicode_text import is_blank

_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.\d+)?\}")
_MAX_FILES = 1_000_000
_NO_SAMPLE = "its tar files hold no sample; copy the data set again"


class WebdatasetSource:
    """Reads the tar files of a folder, one tar file, or those of a pattern.

    Args:
        config: Cameras, action, state, instruction and episode by the names of fields (`wrist.jpg`,
            `action.npy`, `json:action`).
        files: Of the source; None: opened here.
    """

    def __init__(self, config: SourceConfig, files: SourceFiles | None = None) -> None:
        self._config = config
        self.files = open_files(config) if files is None else files

    def embodiment(self) -> Embodiment:
        """By the parts that the settings name."""
        return self._fields.parts.embodiment

    def no_ops(self) -> NoOpRule:
        """By the names of the action's numbers, or as the settings say."""
        return self._fields.parts.no_ops

    def references(self) -> list[DemonstrationReference]:
        """Every episode, in the order of files and samples.

        All headers, numbers and texts are read here. Where a file is damaged, the episode there has a fault;
        what follows in that file cannot be found, and is not counted.

        Raises:
            InputError: There is no file or no sample, or the samples of an episode do not follow each other.
        """
        references: list[DemonstrationReference] = []
        seen: set[str] = set()
        for episode in self._episodes():
            if episode.key in seen:
                raise InputError(
                    f"{self._config.source}: samples of episode {episode.key} lie in several places, "
                    "expected one after the other (not shuffled); write the files again in order, or name "
                    "the field that tells episodes apart with episode_field=NAME"
                )
            seen.add(episode.key)
            references.append(self._reference(episode))
            check_first(references, self._config.skip_bad, self._config.source)
        if not references:
            raise InputError(f"{self._config.source}: {_NO_SAMPLE}")
        return references

    def checked(self, references: Iterable[DemonstrationReference]) -> Iterator[DemonstrationReference]:
        """The references as they are: listing them read the numbers."""
        return iter(references)

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read the samples of one episode and decode its frames.

        Raises:
            InputError: A sample is damaged or lacks a part.
        """
        recording = Recording(self._fields)
        paths = (reference.path, *reference.videos)
        for path, span in zip(paths, reference.item.split(";"), strict=True):
            begin, _, end = span.partition("-")
            with self._opened(path) as (place, file):
                for sample in read_samples(place, int(begin), int(end)):
                    reader = _reader(file, sample, place)
                    recording.add_numbers(reader)
                    recording.add_frames(reader)
        where = _where(reference.path, reference.key)
        actions, states = recording.actions_and_states(where)
        return reference.demonstration(
            recording.stacked_frames(bool(self._config.rotate), where), actions, states
        )

    @cached_property
    def _paths(self) -> list[PurePath]:
        """The tar files, in order (InputError: there are none)."""
        _, pattern = folder_and_pattern(self._config.source)
        root = self.files.root
        if pattern is None:
            found = [path for path in self.files.files(root) if path.suffix == TAR_SUFFIX]
        else:
            found = [root / name for name in _expanded(pattern)]
        if not found:
            raise InputError(f"{root}: no *.tar file there, expected WebDataset's; name the right folder")
        return found

    @cached_property
    def _fields(self) -> Fields:
        """Chosen by the first sample of the first file that has one."""
        first: InputError | None = None
        for path in self._paths:
            try:
                with self._opened(path) as (place, file):
                    for sample in read_samples(place):
                        reader = _reader(file, sample, place)
                        return Fields.choose(sample, reader, self._config, slug(self.files.name))
            except DamagedTarError as error:
                first = first or error
        raise first or InputError(f"{self._config.source}: {_NO_SAMPLE}")

    def _episodes(self) -> Iterator[ListedEpisode]:
        """Every episode, with its numbers and texts."""
        grouping = EpisodeGrouping(self._fields, self._config.episode_field)
        for path in self._paths:
            try:
                with self._opened(path) as (place, file):
                    for sample in read_samples(place):
                        yield from grouping.add(sample, _reader(file, sample, place), path, place)
            except DamagedTarError as error:
                yield from grouping.damaged(error, path)
        yield from grouping.close()

    @contextmanager
    def _opened(self, path: PurePath) -> Generator[tuple[Path, BinaryIO]]:
        """Open a tar file (DamagedTarError: it cannot be opened)."""
        with self.files.opened(path) as place, ExitStack() as stack:
            try:
                file = stack.enter_context(place.open("rb"))
            except OSError as error:
                raise DamagedTarError(
                    f"{path}: cannot be read ({error.strerror}); copy the data set again"
                ) from error
            yield place, file

    def _reference(self, episode: ListedEpisode) -> DemonstrationReference:
        """An episode whose samples are all listed."""
        path = episode.ranges[0][0] if episode.ranges else self.files.root
        where = _where(path, episode.key)
        text, length, idle, fault = "", 0, False, episode.fault
        if not fault:
            try:
                texts = episode.recording.texts
                if len(self._fields.instructions) > 1:
                    texts = [each for each in texts if not is_blank(each)]
                drawn_by = (self._config.draw_seed, episode.key)
                chosen = choose_text(texts, self._config.several_instructions, where, drawn_by)
                text = clean_instruction(chosen, where)
                actions, _ = episode.recording.actions_and_states(where)
                length, idle = len(actions), not moving_steps(actions, self.no_ops()).any()
            except InputError as error:
                fault = str(error)
        return DemonstrationReference(
            path=path,
            item=";".join(f"{begin}-{end}" for _, begin, end in episode.ranges),
            key=episode.key,
            suite=slug(self.files.name),
            task=slug(text),
            instruction=text,
            length=length,
            cameras=tuple(sorted(self._fields.cameras)),
            videos=tuple(each for each, _, _ in episode.ranges[1:]),
            fault=fault,
            idle=idle,
        )


def _reader(file: BinaryIO, sample: Sample, path: Path) -> SampleReader:
    return SampleReader(file, sample, f"{path}: sample {sample.key} at offset {sample.begin}")


def _where(path: PurePath, key: str) -> str:
    return f"{path}: episode {key}"


def _expanded(pattern: str) -> list[str]:
    """The names of a pattern with braces, as WebDataset expands them.

    Raises:
        InputError: They are more than a million, or a brace is not closed.
    """
    from webdataset.shardlists import expand_urls

    count = math.prod(abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(pattern))
    if count > _MAX_FILES:
        raise InputError(f"source: {pattern} names {count} files, expected at most {_MAX_FILES}; name fewer")
    try:
        return expand_urls(pattern)
    except ValueError as error:  # of braceexpand
        raise InputError(
            f"source: the pattern {pattern} cannot be expanded ({error}), expected braces as in {{000..012}}"
        ) from error
