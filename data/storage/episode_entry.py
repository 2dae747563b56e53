"""One episode of an index: where it is stored, and what it is."""

from __future__ import annotations

from dataclasses import dataclass

from data.contracts import Episode
from data.storage.shards import Location

SPLITS = ("train", "val_ind", "val_ood")
TRAINING_SPLIT = SPLITS[0]
ALL_SPLITS = "all"
"""Name for the episodes of all splits together."""


@dataclass(frozen=True, slots=True)
class EpisodeEntry:
    """One episode: bytes [offset, offset + size) of `shard` are its members.

    Attributes:
        key: Unique within the data set.
        shard: Object name below the data set's URL.
        offset, size: Byte range, multiples of 512.
        sha256: Of that range.
        length: Time steps T.
        suite, task, instruction: As in `data.contracts.Episode`.
        split: One of `SPLITS`.
    """

    key: str
    shard: str
    offset: int
    size: int
    sha256: str
    length: int
    suite: str
    task: str
    instruction: str
    split: str

    @classmethod
    def of(cls, episode: Episode, location: Location, split: str) -> EpisodeEntry:
        """The entry of an episode that was written to a shard."""
        return cls(
            key=episode.key,
            shard=location.shard,
            offset=location.offset,
            size=location.size,
            sha256=location.sha256,
            length=episode.length,
            suite=episode.suite,
            task=episode.task,
            instruction=episode.instruction,
            split=split,
        )


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """A task that several episodes show; fields as in `data.contracts.Episode`."""

    suite: str
    task: str
    instruction: str
