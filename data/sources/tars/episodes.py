"""Samples of WebDataset's tar files, in their order, as episodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from data.errors import InputError
from data.sources.files.source_files import TAR_SUFFIX, naming
from data.sources.tars.fields import Fields, Recording
from data.sources.tars.samples import Sample, SampleReader, key_of
from data.sources.tars.tar_members import DamagedTarError

_STEP_KEY = re.compile(r"(.+)[_-]([^_-]*)")
_LAST_NUMBER = re.compile(r"(\d{1,18})\D*$")
_NO_KEY = re.compile(r"[^A-Za-z0-9_+=,-]")


@dataclass
class ListedEpisode:
    """An episode whose samples are listed.

    Attributes:
        identity: What its steps have in common.
        key: As of the reference: unique in the source.
        recording: Its numbers and texts.
        ranges: File, offset of its first sample there, and offset after its last one.
        number: The number at the end of the newest step's key.
        fault: Why it cannot be used.
    """

    identity: str
    key: str
    recording: Recording
    ranges: list[tuple[PurePath, int, int]] = field(default_factory=list[tuple[PurePath, int, int]])
    number: int | None = None
    fault: str = ""


class EpisodeGrouping:
    """Puts samples that follow each other into episodes, and yields each that is complete.

    Args:
        fields: What is read of a sample.
        episode: Field that is the same for all steps of an episode; None: the key before its last `_` or `-`.
    """

    def __init__(self, fields: Fields, episode: str | None) -> None:
        self._fields, self._episode = fields, episode
        self._newest: ListedEpisode | None = None

    def add(
        self, sample: Sample, reader: SampleReader, path: PurePath, place: Path
    ) -> Iterator[ListedEpisode]:
        """Add the next sample; what is wrong with it is its episode's fault.

        Args:
            sample: The sample.
            reader: Of its fields.
            path: Its file.
            place: Where that is on this machine.

        Raises:
            InputError: It is not known which episode it belongs to.
        """
        identity = sample.key if self._fields.of_episodes else self._identity(sample, reader)
        number = _number(sample.key)
        episode = self._newest
        if episode is None or not self._continues(episode, identity, number, path):
            yield from self.close()
            episode = self._newest = _begun(identity, path, self._fields)
        if episode.ranges and episode.ranges[-1][0] == path:
            episode.ranges[-1] = (path, episode.ranges[-1][1], sample.end)
        else:
            episode.ranges.append((path, sample.begin, sample.end))
        if not episode.fault:
            try:
                _check_order(episode.number, number, reader.where)
                episode.recording.add_numbers(reader)
            except InputError as error:
                episode.fault = str(naming(error, place, path))
                episode.recording = Recording(self._fields)  # frees what was read
        episode.number = number

    def damaged(self, error: DamagedTarError, path: PurePath) -> Iterator[ListedEpisode]:
        """Note that a file cannot be read further: the fault of the episode there."""
        key = key_of(error.member)
        is_known = self._fields.of_episodes or self._episode is None
        identity = key if self._fields.of_episodes else _episode_of(key) or key
        episode = self._newest
        is_here = episode is not None and bool(episode.ranges) and episode.ranges[-1][0] == path
        if episode is None or not is_here or (is_known and key and identity != episode.identity):
            yield from self.close()
            episode = self._newest = _begun(identity, path, self._fields)
        episode.fault = episode.fault or str(error)

    def close(self) -> Iterator[ListedEpisode]:
        """Yield the newest episode: no sample of it follows."""
        if self._newest is not None:
            yield self._newest
        self._newest = None

    def _identity(self, sample: Sample, reader: SampleReader) -> str:
        if self._episode is not None:
            return reader.identity(self._episode)
        if identity := _episode_of(sample.key):
            return identity
        raise InputError(
            f"{reader.where}: its key has no `_` or `-` before the number of the step, so that its episode "
            "is not known; name the field that tells it with episode_field=NAME (json:episode_index)"
        )

    def _continues(self, episode: ListedEpisode, identity: str, number: int | None, path: PurePath) -> bool:
        """Whether a sample is an episode's next step; in another file only if steps are counted on."""
        if self._fields.of_episodes or identity != episode.identity:
            return False
        counts_on = number is not None and episode.number is not None and number > episode.number
        return counts_on or (bool(episode.ranges) and episode.ranges[-1][0] == path)


def _begun(identity: str, path: PurePath, fields: Fields) -> ListedEpisode:
    """An episode that begins in a file; its key has the file's name: samples' keys are of one file."""
    parts = [path.name.removesuffix(TAR_SUFFIX), *identity.split("/")]
    key = "/".join(_NO_KEY.sub("_", part) for part in parts if part)
    return ListedEpisode(identity, key, Recording(fields))


def _check_order(before: int | None, number: int | None, where: str) -> None:
    """Refuse a step whose number is not above that of the step before (InputError)."""
    if number is not None and before is not None and number <= before:
        raise InputError(
            f"{where}: step {number} comes after step {before}, expected ascending numbers in the keys; "
            "write the files again in order"
        )


def _episode_of(key: str) -> str:
    """The episode's part of a step's key; empty: it has none."""
    match = _STEP_KEY.fullmatch(key)
    return match[1] if match else ""


def _number(key: str) -> int | None:
    """The number at the end of a key."""
    match = _LAST_NUMBER.search(key)
    return int(match[1]) if match else None
