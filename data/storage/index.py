"""The index of a data set: what is in which shard, and how it was made.

`index.json` is written last and as a whole, so a data set without it is not there yet. Everything in it
is checked on reading; an episode is checked against its checksum whenever it is fetched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

from data.contracts import Episode
from data.errors import InputError
from data.stats import Statistics
from data.storage.records import Record
from data.storage.shards import check_key, decode_episode
from data.storage.store import Store, open_store
from data.tokens.action import ActionRanges

INDEX_FILE = "index.json"
SCHEMA = 1
SPLITS = ("train", "val_ind", "val_ood")
_LARGEST_EPISODE = 1 << 32  # bytes


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """How frames became codes.

    Attributes:
        pixels: Side of the (square) frames.
        rows, columns: Grid of codes of a frame.
        codebook_size: Codes are below it.
        tokenizer_sha256: Checksum of the image tokenizer's weights.
    """

    pixels: int
    rows: int
    columns: int
    codebook_size: int
    tokenizer_sha256: str


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


@dataclass(frozen=True)
class DatasetIndex:
    """Everything about a data set but its frames.

    Attributes:
        image: How frames became codes.
        cameras: Cameras that every episode has.
        action_ranges: Ranges that actions are quantised over.
        statistics: `actions` and `states` of the training split.
        episodes: In the order of the shards.
        url: Where it was loaded from; not part of its identity.
    """

    image: ImageFormat
    cameras: tuple[str, ...]
    action_ranges: ActionRanges
    statistics: Mapping[str, Statistics]
    episodes: tuple[EpisodeEntry, ...]
    url: str = field(default="", compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of the content, and so of every episode's bytes; the order of samples derives from it."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def store(self) -> Store:
        """The place the data set was loaded from."""
        return open_store(self.url)

    def split(self, name: str) -> tuple[EpisodeEntry, ...]:
        """The episodes of one of `SPLITS`."""
        return tuple(entry for entry in self.episodes if entry.split == name)

    def to_json(self) -> bytes:
        """The content of `index.json`."""
        content = {"fingerprint": self.fingerprint, **self._content()}
        return (json.dumps(content, indent=1) + "\n").encode()

    def save(self, url: str) -> None:
        """Write `index.json` below `url`, as a whole."""
        open_store(url).write(INDEX_FILE, self.to_json())

    @classmethod
    def load(cls, url: str) -> DatasetIndex:
        """Read and check `index.json` below `url`.

        Raises:
            InputError: There is none, another schema wrote it, or something in it does not hold.
        """
        store = open_store(url)
        if not store.exists(INDEX_FILE):
            raise InputError(f"{store.url}: no {INDEX_FILE} there; make the data set with `worldvla prepare`")
        where = f"{store.url}/{INDEX_FILE}"
        record = Record.parse(store.read(INDEX_FILE), where)
        if record.integer("schema") != SCHEMA:
            raise InputError(
                f"{where}: schema {record.integer('schema')}, this program reads {SCHEMA}; prepare it again"
            )
        index = cls(
            image=_read_image(record.record("image")),
            cameras=tuple(record.texts("cameras")),
            action_ranges=ActionRanges(
                minimum=record.record("action_ranges").numbers("minimum"),
                maximum=record.record("action_ranges").numbers("maximum"),
            ),
            statistics=_read_statistics(record.record("statistics")),
            episodes=tuple(_read_entry(item) for item in record.records("episodes")),
            url=url,
        )
        if len({entry.key for entry in index.episodes}) != len(index.episodes):
            raise InputError(f"{where}: an episode key comes twice; prepare the data set again")
        if index.fingerprint != record.text("fingerprint"):
            raise InputError(
                f"{where}: fingerprint {record.text('fingerprint')[:12]} but the content gives "
                f"{index.fingerprint[:12]}; the file was changed, prepare the data set again"
            )
        return index

    def _content(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "image": asdict(self.image),
            "cameras": list(self.cameras),
            "action_ranges": asdict(self.action_ranges),
            "statistics": {name: asdict(value) for name, value in sorted(self.statistics.items())},
            "episodes": [asdict(entry) for entry in self.episodes],
        }


def read_episode(index: DatasetIndex, entry: EpisodeEntry) -> Episode:
    """Fetch one episode with one range request and check it.

    Raises:
        InputError: Missing, cut short, changed, or not what the index says; the message names shard,
            episode and offset.
    """
    try:
        content = index.store.read_range(entry.shard, entry.offset, entry.size)
        found = hashlib.sha256(content).hexdigest()
        if found != entry.sha256:
            raise InputError(
                f"sha256 {found[:12]}, expected {entry.sha256[:12]}; copy the shard or prepare it again"
            )
        episode = decode_episode(content)
        _check_episode(index, entry, episode)
    except InputError as error:
        raise InputError(
            f"{index.url}: shard {entry.shard}, episode {entry.key}, offset {entry.offset}: {error}"
        ) from error
    return episode


def _check_episode(index: DatasetIndex, entry: EpisodeEntry, episode: Episode) -> None:
    if (episode.key, episode.length) != (entry.key, entry.length):
        raise InputError(
            f"holds {episode.key} of {episode.length} steps, the index says {entry.length} steps"
        )
    if set(episode.codes) != set(index.cameras):
        raise InputError(f"holds cameras {sorted(episode.codes)}, the index says {sorted(index.cameras)}")
    grid = (index.image.rows, index.image.columns)
    for camera, codes in episode.codes.items():
        if codes.shape[1:] != grid:
            raise InputError(f"camera {camera} has a grid of {codes.shape[1:]}, the index says {grid}")
        if int(codes.max()) >= index.image.codebook_size:
            raise InputError(
                f"camera {camera} has code {codes.max()}, the index says below {index.image.codebook_size}"
            )


def _read_image(record: Record) -> ImageFormat:
    return ImageFormat(
        pixels=record.integer("pixels", 1),
        rows=record.integer("rows", 1),
        columns=record.integer("columns", 1),
        codebook_size=record.integer("codebook_size", 1, 1 << 16),
        tokenizer_sha256=record.text("tokenizer_sha256"),
    )


def _read_statistics(record: Record) -> dict[str, Statistics]:
    names = ("minimum", "maximum", "mean", "std", "q01", "q99")
    parts = {name: record.record(name) for name in ("actions", "states")}
    return {
        name: Statistics(count=part.integer("count", 1), **{key: part.numbers(key) for key in names})
        for name, part in parts.items()
    }


def _read_entry(record: Record) -> EpisodeEntry:
    return EpisodeEntry(
        key=check_key(record.text("key")),
        shard=record.text("shard"),
        offset=record.integer("offset"),
        size=record.integer("size", 1, _LARGEST_EPISODE),
        sha256=record.text("sha256"),
        length=record.integer("length", 1),
        suite=record.text("suite"),
        task=record.text("task"),
        instruction=record.text("instruction"),
        split=record.text("split", SPLITS),
    )
