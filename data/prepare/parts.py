"""The parts of a preparation: one shard each, planned before anything is encoded.

The demonstrations of a shard depend only on order and lengths of all, so any number of workers in any order
write the same bytes. A finished part consists of its shard and::

    parts/part-000003-<plan>.values   float64 [N, D + S], action and state of every step
    parts/part-000003-<plan>.json     names and checksums of shard and values, and the episodes; written last

`<plan>` is a checksum of everything that the part depends on: settings, image tokenizer, and name, size and
time of the files it is read from. A part with a record and matching checksums is not written again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from data.contracts import DEFAULT_EMBODIMENT, Embodiment
from data.errors import InputError
from data.json_record import JsonRecord
from data.sources.files.source_files import file_state
from data.sources.interface import DemonstrationReference
from data.storage.shards import Location
from data.storage.store import Store

_VERSION = 2  # of these files; with another one every part is written again
_MEMBER_OVERHEAD = 1536  # bytes of headers and padding that a member of a shard takes, at most
_MAX_SHARD = 1 << 40  # bytes
# Fields of a reference that the bytes of its episode do not depend on.
_NO_CONTENT = ("path", "videos", "fault", "idle", "displaced")


@dataclass(frozen=True, slots=True)
class Part:
    """The demonstrations of one shard.

    Attributes:
        number: From 0, in the order of the demonstrations.
        references: Its demonstrations.
        plan: Checksum (hexadecimal) of everything that its content depends on.
        allowed_bad: Demonstrations of the whole data set that may be left out because they cannot be used.
        embodiment: What the numbers of actions and states are.
    """

    number: int
    references: tuple[DemonstrationReference, ...]
    plan: str
    allowed_bad: int = 0
    embodiment: Embodiment = DEFAULT_EMBODIMENT

    @property
    def width(self) -> int:
        """D + S, numbers of an action and a state."""
        return self.embodiment.action_dim + self.embodiment.state_dim

    @property
    def name(self) -> str:
        """Name of its record and values, without the suffix."""
        return f"parts/part-{self.number:06d}-{self.plan[:16]}"


@dataclass(frozen=True, slots=True)
class PartEpisode:
    """One episode of a finished part; fields as in `data.storage.episode_entry.EpisodeEntry`."""

    key: str
    offset: int
    size: int
    sha256: str
    length: int
    suite: str
    task: str
    instruction: str


@dataclass(frozen=True, slots=True)
class SkippedDemonstration:
    """A demonstration that cannot be used, and why."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class PartRecord:
    """The record of a finished part.

    Attributes:
        shard: Object name; empty where the part has no episode.
        shard_sha256: Checksum of the whole shard.
        values_sha256: Checksum of the values.
        dropped: Keys of the demonstrations that did not succeed in their replay.
        episodes: The others, in order.
        skipped: Demonstrations that were left out because they cannot be used (`skip_bad`).
    """

    shard: str
    shard_sha256: str
    values_sha256: str
    dropped: tuple[str, ...]
    episodes: tuple[PartEpisode, ...]
    skipped: tuple[SkippedDemonstration, ...] = ()


def plan_parts(
    references: Sequence[DemonstrationReference],
    step_bytes: int,
    limit: int,
    settings: object,
    allowed_bad: int = 0,
    embodiment: Embodiment = DEFAULT_EMBODIMENT,
    variants: int = 0,
    state: Callable[[PurePath], list[object]] = file_state,
) -> list[Part]:
    """Divide demonstrations into parts of adjacent ones that fit `limit` bytes, or are alone.

    Args:
        references: All demonstrations, in order.
        step_bytes: Largest number of bytes of one time step in a shard.
        limit: Largest number of bytes of a shard.
        settings: Everything else that the content depends on, as JSON values.
        allowed_bad: Of each part.
        embodiment: Of each part.
        variants: Of each episode.
        state: Tells what changes with a file's content (`data.sources.files.source_files.SourceFiles.state`).

    Raises:
        InputError: A file cannot be looked up.
    """
    groups: list[list[DemonstrationReference]] = []
    filled = 0
    for reference in references:
        members = len(reference.cameras) * (1 + variants) + 3
        size = reference.length * step_bytes + members * _MEMBER_OVERHEAD
        size = 0 if reference.fault else size
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(reference)
        filled += size
    depends_on = [_VERSION, settings]
    if embodiment != DEFAULT_EMBODIMENT:
        depends_on.append(asdict(embodiment))
    common = json.dumps(depends_on, sort_keys=True)
    return [
        Part(number, tuple(group), _checksum(common + _identity(group, state)), allowed_bad, embodiment)
        for number, group in enumerate(groups)
    ]


def finished_record(store: Store, part: Part, thorough: bool = True) -> PartRecord | None:
    """The record of a finished part; None where it is unfinished or differs from its record.

    Args:
        store: Where the data set is written.
        part: The part.
        thorough: Also read shard and values and verify their checksums.
    """
    if not store.exists(f"{part.name}.json"):
        return None
    try:
        record = _parse(store.read(f"{part.name}.json"), f"{store.url}/{part.name}.json")
        if thorough:
            _verify(store, part, record)
    except InputError:  # truncated or changed: the part is written again
        return None
    return record


def write_record(
    store: Store,
    part: Part,
    locations: Sequence[Location],
    episodes: Sequence[tuple[DemonstrationReference, int]],
    values: Sequence[NDArray[np.float64]],
    dropped: Sequence[str],
    skipped: Mapping[str, str],
) -> PartRecord:
    """Write the record of a part whose shard is written.

    Args:
        store: Where the data set is written.
        part: The part.
        locations: Location of each episode in the shard.
        episodes: Reference and number of steps of each.
        values: float64 [N, D + S] of each, action and state.
        dropped: Keys of the demonstrations that did not succeed in their replay.
        skipped: Key -> reason of those that cannot be used.
    """
    content = np.concatenate([np.zeros((0, part.width)), *values]).astype("<f8").tobytes()
    store.write(f"{part.name}.values", content)
    shard = locations[0].shard if locations else ""
    record = PartRecord(
        shard=shard,
        shard_sha256=hashlib.sha256(store.read(shard)).hexdigest() if shard else "",
        values_sha256=hashlib.sha256(content).hexdigest(),
        dropped=tuple(dropped),
        episodes=tuple(
            PartEpisode(
                reference.key,
                location.offset,
                location.size,
                location.sha256,
                length,
                reference.suite,
                reference.task,
                reference.instruction,
            )
            for location, (reference, length) in zip(locations, episodes, strict=True)
        ),
        skipped=tuple(SkippedDemonstration(key, reason) for key, reason in skipped.items()),
    )
    store.write(f"{part.name}.json", (json.dumps(asdict(record)) + "\n").encode())
    return record


def read_values(store: Store, part: Part, record: PartRecord) -> Iterator[NDArray[np.float64]]:
    """Read action and state of each episode of a finished part, float64 [N, D + S].

    Raises:
        InputError: They differ from the record.
    """
    content = store.read(f"{part.name}.values")
    lengths = [episode.length for episode in record.episodes]
    size = sum(lengths) * part.width * np.dtype(np.float64).itemsize
    if hashlib.sha256(content).hexdigest() != record.values_sha256 or len(content) != size:
        raise InputError(
            f"{store.url}/{part.name}.values: not what its record says; prepare the data set again"
        )
    if lengths:
        yield from np.split(np.frombuffer(content, "<f8").reshape(-1, part.width), np.cumsum(lengths)[:-1])


def _verify(store: Store, part: Part, record: PartRecord) -> None:
    """Refuse a part whose shard or values are missing or have other checksums (InputError)."""
    for _ in read_values(store, part, record):
        pass
    if not record.shard:
        return
    content = store.read(record.shard)
    ranges = [(content[e.offset : e.offset + e.size], e.sha256) for e in record.episodes]
    for block, checksum in [(content, record.shard_sha256), *ranges]:
        if hashlib.sha256(block).hexdigest() != checksum:
            raise InputError(f"{store.url}/{record.shard}: not what its record says")


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(references: Sequence[DemonstrationReference], state: Callable[[PurePath], list[object]]) -> str:
    """The demonstrations and the state of their files, as text."""
    described: list[object] = []
    for reference in references:
        files = [] if reference.fault else [state(path) for path in (reference.path, *reference.videos)]
        fields = {name: value for name, value in asdict(reference).items() if name not in _NO_CONTENT}
        if reference.fault:
            fields["fault"] = reference.fault
        described.append([files, fields])
    return json.dumps(described, sort_keys=True)


def _parse(content: bytes, where: str) -> PartRecord:
    record = JsonRecord.parse(content, where)
    return PartRecord(
        shard=record.text("shard"),
        shard_sha256=record.text("shard_sha256"),
        values_sha256=record.text("values_sha256"),
        dropped=tuple(record.texts("dropped")),
        episodes=tuple(
            PartEpisode(
                key=item.text("key"),
                offset=item.integer("offset"),
                size=item.integer("size", 1, _MAX_SHARD),
                sha256=item.text("sha256"),
                length=item.integer("length", 1),
                suite=item.text("suite"),
                task=item.text("task"),
                instruction=item.text("instruction"),
            )
            for item in record.records("episodes")
        ),
        skipped=tuple(
            SkippedDemonstration(item.text("key"), item.text("reason")) for item in record.records("skipped")
        ),
    )
