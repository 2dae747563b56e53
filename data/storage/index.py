"""The index of a data set: what is in which shard, and how it was made.

`index.json` is written last and as a whole, so a data set without it is not there yet. It names the file
with the columns of the episodes (`data.storage.episode_table`) and its checksum. Everything in both is
checked on reading; an episode is checked against its checksum whenever it is fetched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from data.contracts import Episode, Statistics
from data.errors import InputError
from data.storage.episode_cache import EpisodeCache
from data.storage.cached_episodes import KeptEpisodes
from data.storage.episode_table import SPLITS, EpisodeEntry, EpisodeTable, Task
from data.storage.mapped_arrays import map_object
from data.json_record import Record
from data.storage.retries import RETRY_SECONDS
from data.storage.shards import COMPRESSIONS, decode_episode, expand_episode
from data.storage.store import Store, open_store
from data.tokens.action import ActionRanges
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM

INDEX_FILE = "index.json"
SCHEMA = 3
_PLAIN_SCHEMA = 2  # of data sets without compression, which older programs read, too
_MEMBER_OVERHEAD = 256  # bytes of a member's npy header, or of the names in the JSON, at most
__all__ = [
    "INDEX_FILE",
    "SCHEMA",
    "SPLITS",
    "DatasetIndex",
    "EpisodeEntry",
    "EpisodeTable",
    "ImageFormat",
    "read_episode",
]


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


@dataclass(frozen=True)
class DatasetIndex:
    """Everything about a data set but its frames.

    Attributes:
        image: How frames became codes.
        cameras: Cameras that every episode has.
        action_ranges: Ranges that actions are quantised over.
        statistics: `actions` and `states` of the training split.
        episodes: In the order of the shards.
        compression: Of the members of its episodes, one of `data.storage.shards.COMPRESSIONS`.
        url: Where it was loaded from; not part of its identity, as what follows.
        retry_seconds: How long requests there are tried again.
        cache: Where its episodes are kept once they are read; None: nowhere.
    """

    image: ImageFormat
    cameras: tuple[str, ...]
    action_ranges: ActionRanges
    statistics: Mapping[str, Statistics]
    episodes: EpisodeTable
    compression: str = COMPRESSIONS[0]
    url: str = field(default="", compare=False)
    retry_seconds: float = field(default=RETRY_SECONDS, compare=False)
    cache: EpisodeCache | None = field(default=None, compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of the content, and so of every episode's bytes; the order of samples derives from it."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def store(self) -> Store:
        """The place the data set was loaded from."""
        return open_store(self.url, self.retry_seconds)

    @cached_property
    def kept(self) -> KeptEpisodes | None:
        """Its episodes in the cache; None: there is no cache."""
        if self.cache is None:
            return None
        grid = (self.image.rows, self.image.columns)
        return KeptEpisodes(self.cache, self.cameras, grid, checked=str(self.image.codebook_size))

    def split(self, name: str) -> EpisodeTable:
        """The episodes of one of `SPLITS`."""
        return self.episodes.split(name)

    def to_json(self) -> bytes:
        """The content of `index.json`."""
        content = {"fingerprint": self.fingerprint, **self._content()}
        return (json.dumps(content, indent=1) + "\n").encode()

    def save(self, url: str) -> None:
        """Write the columns of the episodes below `url`, then `index.json`, each as a whole."""
        store = open_store(url)
        store.write(self.episodes.file, self.episodes.to_bytes())
        store.write(INDEX_FILE, self.to_json())

    @classmethod
    def load(
        cls, url: str, retry_seconds: float = RETRY_SECONDS, cache: EpisodeCache | None = None
    ) -> DatasetIndex:
        """Read and check `index.json` below `url`.

        Args:
            url: Folder or object-store prefix.
            retry_seconds: How long requests there are tried again, now and later.
            cache: Where its episodes will be kept.

        Raises:
            InputError: There is none, another schema wrote it, or something in it does not hold.
        """
        store = open_store(url, retry_seconds)
        if not store.exists(INDEX_FILE):
            raise InputError(f"{store.url}: no {INDEX_FILE} there; make the data set with `worldvla prepare`")
        where = f"{store.url}/{INDEX_FILE}"
        record = Record.parse(store.read(INDEX_FILE), where)
        schema = record.integer("schema")
        if schema not in (_PLAIN_SCHEMA, SCHEMA):
            raise InputError(f"{where}: schema {schema}, this program reads {SCHEMA}; prepare it again")
        index = cls(
            image=_read_image(record.record("image")),
            cameras=tuple(record.texts("cameras")),
            action_ranges=ActionRanges(
                minimum=record.record("action_ranges").numbers("minimum"),
                maximum=record.record("action_ranges").numbers("maximum"),
            ),
            statistics=_read_statistics(record.record("statistics")),
            episodes=_read_episodes(store, record),
            compression=record.text("compression", COMPRESSIONS) if schema == SCHEMA else COMPRESSIONS[0],
            url=url,
            retry_seconds=retry_seconds,
            cache=cache,
        )
        if index.fingerprint != record.text("fingerprint"):
            raise InputError(
                f"{where}: fingerprint {record.text('fingerprint')[:12]} but the content gives "
                f"{index.fingerprint[:12]}; the file was changed, prepare the data set again"
            )
        return index

    def _content(self) -> dict[str, object]:
        plain = self.compression == COMPRESSIONS[0]
        return {
            "schema": _PLAIN_SCHEMA if plain else SCHEMA,
            **({} if plain else {"compression": self.compression}),
            "image": asdict(self.image),
            "cameras": list(self.cameras),
            "action_ranges": asdict(self.action_ranges),
            "statistics": {name: asdict(value) for name, value in sorted(self.statistics.items())},
            "episodes": {"file": self.episodes.file, "sha256": self.episodes.sha256},
            "shards": list(self.episodes.shards),
            "tasks": [asdict(task) for task in self.episodes.tasks],
        }


def read_episode(index: DatasetIndex, entry: EpisodeEntry) -> Episode:
    """Take one episode from the cache, or fetch it with one range request, and check it.

    Raises:
        InputError: Missing, cut short, changed, or not what the index says; the message names shard,
            episode and offset.
    """
    try:
        if index.kept is None:
            return _fetch(index, entry)
        episode = index.kept.get(bytes.fromhex(entry.sha256), lambda: _fetch(index, entry))
        _check_episode(index, entry, episode)
    except InputError as error:
        raise InputError(
            f"{index.url}: shard {entry.shard}, episode {entry.key}, offset {entry.offset}: {error}"
        ) from error
    return episode


def _fetch(index: DatasetIndex, entry: EpisodeEntry) -> Episode:
    """An episode from its shard, verified and compared with the index."""
    content = index.store.read_range(entry.shard, entry.offset, entry.size)
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise InputError(
            f"sha256 {found[:12]}, expected {entry.sha256[:12]}; copy the shard or prepare it again"
        )
    if index.compression != COMPRESSIONS[0]:
        content = expand_episode(content, _most_bytes(index, entry))
    episode = decode_episode(content)
    _check_episode(index, entry, episode)
    return episode


def _most_bytes(index: DatasetIndex, entry: EpisodeEntry) -> int:
    """Bytes that the members of an episode of this length have at most."""
    step = 2 * len(index.cameras) * index.image.rows * index.image.columns + 4 * (ACTION_DIM + STATE_DIM)
    texts = 12 * (len(entry.suite) + len(entry.task) + len(entry.instruction))  # JSON may escape each letter
    return entry.length * step + texts + (len(index.cameras) + 3) * _MEMBER_OVERHEAD


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
    for name, values in (("actions", episode.actions), ("states", episode.states)):
        if np.isnan(values).any():
            raise InputError(f"{name} hold values that are no numbers; drop or repair the demonstration")


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


def _read_episodes(store: Store, record: Record) -> EpisodeTable:
    part = record.record("episodes")
    name = part.text("file")
    content = map_object(store, name)
    where = f"{store.url}/{name}"
    found = hashlib.sha256(content).hexdigest()
    if found != part.text("sha256"):
        raise InputError(
            f"{where}: sha256 {found[:12]}, expected {part.text('sha256')[:12]}; copy the file or prepare "
            "the data set again"
        )
    tasks = [
        Task(suite=task.text("suite"), task=task.text("task"), instruction=task.text("instruction"))
        for task in record.records("tasks")
    ]
    table = EpisodeTable.parse(content, where, record.texts("shards"), tasks)
    table.sha256 = found
    return table
