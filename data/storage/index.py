"""The index of a data set: which episodes are in which shard, and how they were prepared.

`index.json` is written last and as a whole, so an unfinished data set has none. It names the file with the
columns of the episodes (`data.storage.episode_table`) and its checksum. Both files are checked on reading; an
episode is checked against its checksum whenever it is fetched (`data.storage.episode_reader`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, cast, get_args

from data.contracts import (
    DEFAULT_EMBODIMENT,
    MAX_VARIANTS,
    Compression,
    Embodiment,
    Resize,
    SplitOrder,
    Statistics,
)
from data.errors import InputError
from data.json_record import JsonRecord
from data.storage.cached_episodes import CachedEpisodes
from data.storage.episode_cache import EpisodeCache
from data.storage.episode_table import EpisodeTable
from data.storage.retries import RETRY_SECONDS
from data.storage.shards import COMPRESSIONS
from data.storage.store import Store, open_store
from data.storage.table_reader import read_table
from data.tokens.action import ActionRanges
from data.tokens.state import check_state_ranges

INDEX_FILE = "index.json"
SCHEMA = 5
LIBERO_SCHEMA = 4
"""Of data sets of the default embodiment without anything of their own: its files never change."""
_PLAIN_SCHEMA, _COMPRESSED_SCHEMA = 2, 3
"""Of earlier versions: states may be turned by 90 degrees, and actions were rounded to float32."""


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """How frames were encoded.

    Attributes:
        pixels: Side of the (square) frames.
        rows, columns: Grid of codes of a frame.
        codebook_size: Number of codes; all codes are below it.
        tokenizer_sha256: Checksum of the image tokenizer's weights.
    """

    pixels: int
    rows: int
    columns: int
    codebook_size: int
    tokenizer_sha256: str


@dataclass(frozen=True, slots=True)
class StateRanges:
    """Smallest and largest value of each number of a state; values outside are clipped."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]


@dataclass(frozen=True)
class DatasetIndex:
    """Everything about a data set but its frames.

    Attributes:
        image: How frames were encoded.
        cameras: Cameras of every episode.
        action_ranges: Ranges that actions are quantised over.
        statistics: `actions` and `states` of the training split.
        episodes: In the order of the shards.
        compression: Of the members of its episodes, one of `data.storage.shards.COMPRESSIONS`.
        split_order: Order in which the last demonstrations of a task were held out.
        resize: How frames that were not at their resolution were brought to it.
        embodiment: What the numbers of its actions and states are.
        state_ranges: Ranges that states are quantised over; None: `data.state_ranges`.
        variants: Views of every episode under drawn changes of the camera, beside the recorded one.
        augmentation: Strengths and seed of the drawn changes of the camera, by their names in the settings
            (`data.augmentation_config`); None: no variants.
        weight: Share of a mixture that its recipe proposes, relative to other data sets; None: no proposal.
        recipe: Name and checksum of the recipe that it was prepared with; empty: none.
        schema: Version of `index.json` that it was read from.
        url: Where it was loaded from; not part of its identity, like the following attributes.
        retry_seconds: How long failed requests are retried.
        cache: Where episodes are stored once they are read; None: nowhere.
    """

    image: ImageFormat
    cameras: tuple[str, ...]
    action_ranges: ActionRanges
    statistics: Mapping[str, Statistics]
    episodes: EpisodeTable
    compression: Compression = "none"
    split_order: SplitOrder = "number"
    resize: Resize = "box_bicubic"
    embodiment: Embodiment = DEFAULT_EMBODIMENT
    state_ranges: StateRanges | None = None
    variants: int = 0
    augmentation: Mapping[str, float] | None = None
    weight: float | None = None
    recipe: str = ""
    schema: int = SCHEMA
    url: str = field(default="", compare=False)
    retry_seconds: float = field(default=RETRY_SECONDS, compare=False)
    cache: EpisodeCache | None = field(default=None, compare=False)

    @property
    def has_hand_states(self) -> bool:
        """Whether states surely hold the hand body's orientation; else they may be turned by 90 degrees."""
        return self.schema >= LIBERO_SCHEMA

    @property
    def is_plain(self) -> bool:
        """Whether it has the default embodiment and nothing of its own; its files are then schema 4."""
        own = (self.state_ranges, self.variants, self.weight, self.recipe)
        return self.embodiment == DEFAULT_EMBODIMENT and own == (None, 0, None, "")

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of the content, and so of every episode's bytes; the order of samples derives from it."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def store(self) -> Store:
        """The store that the data set was loaded from."""
        return open_store(self.url, self.retry_seconds)

    @cached_property
    def cached_episodes(self) -> CachedEpisodes | None:
        """Its episodes in the cache of the node; None: there is no cache."""
        if self.cache is None:
            return None
        grid = (self.image.rows, self.image.columns)
        return CachedEpisodes(
            self.cache,
            self.cameras,
            grid,
            checked=str(self.image.codebook_size),
            widths=(self.embodiment.action_dim, self.embodiment.state_dim),
            variants=self.variants,
        )

    def split(self, name: str) -> EpisodeTable:
        """The episodes of one of `data.storage.episode_entry.SPLITS`, or of `ALL_SPLITS`."""
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
        cls, url: str, retry_seconds: float | None = None, cache: EpisodeCache | None = None
    ) -> DatasetIndex:
        """Read and check `index.json` below `url`.

        Args:
            url: Folder or object-store prefix.
            retry_seconds: How long failed requests are retried, now and later; None: as `open_store`.
            cache: Where its episodes will be stored.

        Raises:
            InputError: It is missing, of another schema, or inconsistent.
        """
        store = open_store(url, retry_seconds)
        content = _read_index(store)
        where = f"{store.url}/{INDEX_FILE}"
        record = JsonRecord.parse(content, where)
        schema = record.integer("schema")
        if schema not in (_PLAIN_SCHEMA, _COMPRESSED_SCHEMA, LIBERO_SCHEMA, SCHEMA):
            raise InputError(
                f"{where}: schema {schema}, this program reads {_PLAIN_SCHEMA} to {SCHEMA}; prepare it again"
            )
        index = cls(
            image=_read_image(record.record("image")),
            cameras=tuple(record.texts("cameras")),
            action_ranges=_read_ranges(record.record("action_ranges"), where),
            statistics=_read_statistics(record.record("statistics")),
            episodes=read_table(store, content, record),
            compression="none" if schema == _PLAIN_SCHEMA else _read_compression(record),
            split_order=_read_split_order(record) if schema >= LIBERO_SCHEMA else "number",
            resize=_read_resize(record) if schema >= LIBERO_SCHEMA else "lanczos",
            **(_read_own(record) if schema == SCHEMA else {}),
            schema=SCHEMA if schema == LIBERO_SCHEMA else schema,
            url=url,
            retry_seconds=RETRY_SECONDS if retry_seconds is None else retry_seconds,
            cache=cache,
        )
        _check_widths(index, where)
        if index.fingerprint != record.text("fingerprint"):
            raise InputError(
                f"{where}: fingerprint {record.text('fingerprint')[:12]} but the content gives "
                f"{index.fingerprint[:12]}; the file was changed, prepare the data set again"
            )
        return index

    def _content(self) -> dict[str, object]:
        added: dict[str, str] = {} if self.schema == _PLAIN_SCHEMA else {"compression": self.compression}
        schema = self.schema
        if self.has_hand_states:
            added |= {"split_order": self.split_order, "resize": self.resize}
            schema = LIBERO_SCHEMA if self.is_plain else SCHEMA
        return {
            "schema": schema,
            **added,
            **(self._own_content() if schema == SCHEMA else {}),
            "image": asdict(self.image),
            "cameras": list(self.cameras),
            "action_ranges": asdict(self.action_ranges),
            "statistics": {name: asdict(value) for name, value in sorted(self.statistics.items())},
            "episodes": {"file": self.episodes.file, "sha256": self.episodes.sha256},
            "shards": list(self.episodes.shards),
            "tasks": [asdict(task) for task in self.episodes.tasks],
        }

    def _own_content(self) -> dict[str, object]:
        """What data sets that are not plain have more."""
        return {
            "embodiment": asdict(self.embodiment),
            "state_ranges": None if self.state_ranges is None else asdict(self.state_ranges),
            "variants": self.variants,
            "augmentation": None if self.augmentation is None else dict(self.augmentation),
            "weight": self.weight,
            "recipe": self.recipe,
        }


def _read_index(store: Store) -> bytes:
    """The bytes of `index.json`."""
    try:
        return store.read(INDEX_FILE)
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise InputError(
                f"{store.url}: no {INDEX_FILE} there; make the data set with `worldvla prepare`"
            ) from error
        raise


def _check_widths(index: DatasetIndex, where: str) -> None:
    """Refuse ranges and statistics of other widths than the embodiment's (InputError)."""
    actions, states = index.embodiment.action_dim, index.embodiment.state_dim
    found = {
        "action_ranges": (index.action_ranges.width, actions),
        "statistics of actions": (len(index.statistics["actions"].minimum), actions),
        "statistics of states": (len(index.statistics["states"].minimum), states),
    }
    if index.state_ranges is not None:
        check_state_ranges(index.state_ranges.minimum, index.state_ranges.maximum, states)
    for name, (width, expected) in found.items():
        if width != expected:
            raise InputError(
                f"{where}: {name} of {width} numbers, its embodiment {index.embodiment.name} has {expected}; "
                "prepare the data set again"
            )


def _read_own(record: JsonRecord) -> dict[str, Any]:
    """The attributes that data sets that are not plain have more."""
    return {
        "embodiment": read_embodiment(record.record("embodiment")),
        "state_ranges": None
        if record.is_null("state_ranges")
        else read_state_ranges(record.record("state_ranges")),
        "variants": record.integer("variants", 0, MAX_VARIANTS),
        "augmentation": None if record.is_null("augmentation") else record.named_numbers("augmentation"),
        "weight": None if record.is_null("weight") else record.number("weight"),
        "recipe": record.text("recipe"),
    }


def read_embodiment(record: JsonRecord) -> Embodiment:
    """An embodiment from a JSON object of its fields.

    Raises:
        InputError: A field is missing, malformed or not possible; the message names the object.
    """
    control_hz = None if record.is_null("control_hz") else record.number("control_hz", above=0)
    texts = {name: tuple(record.texts(name)) for name in ("action", "state", "missing")}
    try:
        return Embodiment(name=record.text("name"), control_hz=control_hz, **texts)
    except InputError as error:
        raise InputError(f"{record.where}: {error}") from error


def read_state_ranges(record: JsonRecord) -> StateRanges:
    """Ranges of states from a JSON object of their fields (InputError: one is missing or malformed)."""
    return StateRanges(record.numbers("minimum"), record.numbers("maximum"))


def _read_compression(record: JsonRecord) -> Compression:
    return cast("Compression", record.text("compression", COMPRESSIONS))


def _read_ranges(record: JsonRecord, where: str) -> ActionRanges:
    minimum, maximum = record.numbers("minimum"), record.numbers("maximum")
    try:
        return ActionRanges(minimum, maximum)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _read_split_order(record: JsonRecord) -> SplitOrder:
    return cast("SplitOrder", record.text("split_order", get_args(SplitOrder)))


def _read_resize(record: JsonRecord) -> Resize:
    return cast("Resize", record.text("resize", get_args(Resize)))


def _read_image(record: JsonRecord) -> ImageFormat:
    return ImageFormat(
        pixels=record.integer("pixels", 1),
        rows=record.integer("rows", 1),
        columns=record.integer("columns", 1),
        codebook_size=record.integer("codebook_size", 1, 1 << 16),
        tokenizer_sha256=record.text("tokenizer_sha256"),
    )


def _read_statistics(record: JsonRecord) -> dict[str, Statistics]:
    names = ("minimum", "maximum", "mean", "std", "q01", "q99")
    parts = {name: record.record(name) for name in ("actions", "states")}
    return {
        name: Statistics(count=part.integer("count", 1), **{key: part.numbers(key) for key in names})
        for name, part in parts.items()
    }
