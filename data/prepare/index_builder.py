"""Builds the index of a data set from its finished parts: splits, statistics, action ranges."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from data.config import PrepareConfig
from data.contracts import DEFAULT_EMBODIMENT, SplitOrder
from data.errors import InputError
from data.files import writable_folder
from data.json_record import JsonRecord
from data.prepare.left_out import LEFT_OUT_FILE, NOT_SUCCESSFUL, write_left_out
from data.prepare.parts import Part, PartEpisode, PartRecord, finished_record, read_values
from data.prepare.ranges import action_ranges, state_ranges, warn_of_clipped_actions
from data.prepare.statistics import summarise
from data.sources.bad_demonstrations import allowed_bad, check_bad
from data.sources.libero.source import HDF5_SUFFIXES
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_table import EpisodeTable
from data.storage.index import (
    INDEX_FILE,
    LIBERO_SCHEMA,
    SCHEMA,
    DatasetIndex,
    ImageFormat,
)
from data.storage.store import is_object_store, open_store

_LOG = logging.getLogger(__name__)
_MAX_NAMED = 20  # demonstrations that were left out


class FrameFormat(Protocol):
    """The properties of an image tokenizer that the index holds."""

    @property
    def pixels(self) -> int:
        """Side of the frames."""
        ...

    @property
    def rows(self) -> int:
        """Rows of codes."""
        ...

    @property
    def columns(self) -> int:
        """Columns of codes."""
        ...

    @property
    def codebook_size(self) -> int:
        """Number of codes; all codes are below it."""
        ...

    @property
    def sha256(self) -> str:
        """Checksum of the weights."""
        ...


def build_index(
    config: PrepareConfig, tokenizer: FrameFormat, parts: Sequence[Part]
) -> tuple[DatasetIndex, dict[str, str]]:
    """Build the index of a data set whose parts are all finished.

    Returns:
        The index, and key -> reason of each demonstration that was left out.

    Raises:
        InputError: A part's record or values are missing, more demonstrations were left out than `skip_bad`
            allows, or there is no episode.
    """
    store = open_store(config.out)
    finished: list[tuple[Part, PartRecord]] = []
    for part in parts:
        record = finished_record(store, part, thorough=False)
        if record is None:
            raise InputError(f"{store.url}/{part.name}.json: vanished or was changed; prepare again")
        finished.append((part, record))
    episodes = [(record.shard, episode) for _, record in finished for episode in record.episodes]
    skipped = {bad.key: bad.reason for _, record in finished for bad in record.skipped}
    total = sum(len(part.references) for part in parts)
    check_bad(skipped, allowed_bad(config.skip_bad, total), config.source)
    if not episodes and len(skipped) == total:
        raise InputError(
            f"{config.source}: none of its {total} demonstrations can be used; of the first: "
            f"{next(iter(skipped.values()))}"
        )
    if not episodes:
        raise InputError(
            f"{config.source}: none of its {total} demonstrations "
            "succeeded when it was replayed; check the simulator, or prepare with replay=false"
        )
    split_order = choose_split_order(config, parts[0].references[0].path)
    splits = assign_splits(
        [f"{episode.suite}/{episode.task}" for _, episode in episodes],
        [episode.key for _, episode in episodes] if split_order == "letters" else None,
    )
    if skipped:
        _LOG.warning(
            "%s: left out %d of %d demonstrations (skip_bad), named in %s: %s",
            config.source,
            len(skipped),
            total,
            LEFT_OUT_FILE,
            "; ".join(list(skipped.values())[:_MAX_NAMED]),
        )
    robot = parts[0].embodiment
    values = _TrainingValues(config.out, finished, splits, slice(0, robot.action_dim))
    # One after the other: together they would take twice the memory.
    actions = summarise(values)
    states = summarise(_TrainingValues(config.out, finished, splits, slice(robot.action_dim, None)))
    ranges = action_ranges(config, actions, robot)
    warn_of_clipped_actions(values, ranges, robot, config)
    index = DatasetIndex(
        image=_image_format(tokenizer),
        cameras=_cameras(parts),
        action_ranges=ranges,
        statistics={"actions": actions, "states": states},
        episodes=EpisodeTable.of(_entries(episodes, splits)),
        compression=config.compression,
        split_order=split_order,
        resize=config.resize,
        embodiment=robot,
        state_ranges=state_ranges(config, states, robot),
        variants=config.variants,
        augmentation=config.augmentation.numbers() if config.variants else None,
        weight=config.weight,
        recipe=_recipe(config),
        url=config.out,
    )
    dropped = {key: NOT_SUCCESSFUL for _, record in finished for key in record.dropped}
    return index, skipped | dropped


def check_out(url: str) -> None:
    """Refuse a place with a data set of another version, before anything is encoded (InputError)."""
    store = open_store(url)
    if not store.exists(INDEX_FILE):
        return
    schema = JsonRecord.parse(store.read(INDEX_FILE), f"{store.url}/{INDEX_FILE}").integer("schema")
    if schema not in (LIBERO_SCHEMA, SCHEMA):
        raise InputError(
            f"{store.url}: holds a data set of another version (schema {schema}, now {SCHEMA}); choose "
            f"another out= or delete {INDEX_FILE} there"
        )


def check_writable(url: str) -> None:
    """Make the folder of a data set that is not there yet; refuse one that cannot be written (InputError).

    Before anything is encoded. Whether an object store takes what is written, its first shard shows.
    """
    store = open_store(url)
    if not is_object_store(url) and not store.exists(INDEX_FILE):
        writable_folder(Path(store.url))


def check_same(config: PrepareConfig, tokenizer: FrameFormat, parts: Sequence[Part]) -> None:
    """Refuse a place with a data set of other settings, before anything is encoded.

    `commit_index` compares the whole index; this is what is known of it without the frames and statistics.

    Raises:
        InputError: The index there has another value; names the first one.
    """
    store = open_store(config.out)
    if not store.exists(INDEX_FILE):
        return
    content = store.read(INDEX_FILE)
    JsonRecord.parse(content, f"{store.url}/{INDEX_FILE}")
    expected = {
        "variants": config.variants,
        "augmentation": dict(config.augmentation.numbers()) if config.variants else None,
        "compression": config.compression,
        "image": asdict(_image_format(tokenizer)),
        "cameras": _cameras(parts),
        "resize": config.resize,
        "split_order": choose_split_order(config, parts[0].references[0].path),
        "embodiment": asdict(parts[0].embodiment),
        "weight": config.weight,
        "recipe": _recipe(config),
    }
    plain = {**dict.fromkeys(expected), "variants": 0, "embodiment": asdict(DEFAULT_EMBODIMENT), "recipe": ""}
    found = _flat({**_as_json(plain), **json.loads(content)})
    for name, value in _flat(_as_json(expected)).items():
        if found.get(name) != value:
            raise InputError(
                f"{store.url}: holds another data set already ({name} {_shown(found.get(name))}, now "
                f"{_shown(value)}); choose another out= or delete {INDEX_FILE} there"
            )


def commit_index(index: DatasetIndex, left_out: Mapping[str, str] | None = None) -> None:
    """Write what was left out, then the index.

    Args:
        index: The index.
        left_out: Key -> reason of each demonstration that is not in it.

    Raises:
        InputError: `out` already holds another data set, which stays unchanged.
    """
    store = open_store(index.url)
    if store.exists(INDEX_FILE) and store.read(INDEX_FILE) != index.to_json():
        raise InputError(
            f"{store.url}: holds another data set already (its {INDEX_FILE} differs); choose another out= "
            f"or delete {INDEX_FILE} there"
        )
    write_left_out(store, index.fingerprint, left_out or {})
    index.save(index.url)


def assign_splits(tasks: Sequence[str], keys: Sequence[str] | None = None) -> list[str]:
    """Assign demonstrations to splits by their tasks (WorldVLA's rule).

    Of the sorted tasks the first ceil(0.9 T) are in domain, the others `val_ood`; of the n demonstrations
    of a task in domain the first ceil(0.9 n) are `train`, the others `val_ind`.

    Args:
        tasks: Task of each demonstration.
        keys: Key of each, by whose letters the demonstrations of a task are ordered; None: they are in order.
    """
    names = sorted(set(tasks))
    in_domain = set(names[: _nine_tenths(len(names))])
    counts = Counter(tasks)
    seen: Counter[str] = Counter()
    splits = [""] * len(tasks)
    numbers = range(len(tasks))
    for number in numbers if keys is None else sorted(numbers, key=keys.__getitem__):
        task = tasks[number]
        seen[task] += 1
        is_training = seen[task] <= _nine_tenths(counts[task])
        splits[number] = "val_ood" if task not in in_domain else "train" if is_training else "val_ind"
    return splits


def _image_format(tokenizer: FrameFormat) -> ImageFormat:
    return ImageFormat(
        pixels=tokenizer.pixels,
        rows=tokenizer.rows,
        columns=tokenizer.columns,
        codebook_size=tokenizer.codebook_size,
        tokenizer_sha256=tokenizer.sha256,
    )


def _cameras(parts: Sequence[Part]) -> tuple[str, ...]:
    return next(each.cameras for part in parts for each in part.references if not each.fault)


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON gives them back."""
    return cast("dict[str, Any]", json.loads(json.dumps(values)))


def _flat(values: dict[str, Any]) -> dict[str, object]:
    """The members of objects beside the other values: `image.pixels`."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        members = cast("dict[str, object]", value if isinstance(value, dict) else {})
        flat |= {f"{name}.{member}": each for member, each in members.items()} or {name: value}
    return flat


def _shown(value: object) -> str:
    listed = ", ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else value
    return "none" if listed in (None, "") else str(listed)


def _recipe(config: PrepareConfig) -> str:
    """Name and checksum of the recipe, and what was set anew; a path is shortened to the name of its file."""
    if config.recipe is None:
        return ""
    name = " ".join([PurePath(config.recipe).stem, *filter(None, [config.recipe_sha256])])
    return f"{name} with another {', '.join(config.recipe_changed)}" if config.recipe_changed else name


def choose_split_order(config: PrepareConfig, source: PurePath) -> SplitOrder:
    """The order of the settings; by default that of the published lists where the data are LIBERO's."""
    is_libero = config.format == "libero" or source.suffix.lower() in HDF5_SUFFIXES
    return config.split_order or ("letters" if is_libero else "number")


@dataclass(frozen=True)
class _TrainingValues:
    """Actions or states of the training episodes, read from the parts; can be iterated repeatedly."""

    url: str
    parts: Sequence[tuple[Part, PartRecord]]
    splits: Sequence[str]
    columns: slice

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        store, splits = open_store(self.url), iter(self.splits)
        for part, record in self.parts:
            values = read_values(store, part, record)
            chosen = [
                table
                for table, split in zip(values, islice(splits, len(record.episodes)), strict=True)
                if split == "train"
            ]
            if chosen:
                yield np.concatenate(chosen)[:, self.columns]


def _entries(episodes: Iterable[tuple[str, PartEpisode]], splits: Iterable[str]) -> Iterator[EpisodeEntry]:
    for (shard, episode), split in zip(episodes, splits, strict=True):
        yield EpisodeEntry(
            key=episode.key,
            shard=shard,
            offset=episode.offset,
            size=episode.size,
            sha256=episode.sha256,
            length=episode.length,
            suite=episode.suite,
            task=episode.task,
            instruction=episode.instruction,
            split=split,
        )


def _nine_tenths(count: int) -> int:
    return -(-9 * count // 10)  # rounded up, in whole numbers
