"""The data sets of a training, opened and checked for compatibility."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig, MixtureSource
from data.errors import InputError
from data.storage.episode_cache import EpisodeCache, open_cache
from data.storage.episode_entry import ALL_SPLITS, SPLITS, TRAINING_SPLIT
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, ImageFormat
from data.storage.shared_memory import open_shared_memory, ranks_of_this_node
from data.storage.store import is_object_store
from data.stream.source_format import SourceFormat


@dataclass(frozen=True, slots=True)
class StreamDataset:
    """One split of one data set.

    Attributes:
        name: Short and unique among the data sets: the last part of the URL.
        weight: Relative share of the samples.
        index: The data set.
        entries: The episodes of the split; the stream numbers them from 0.
        steps: int32 [E], time steps of each episode.
        number: Its number among all data sets of the training (a validation split may lack some).
        sources: What the actions and states of each of these are.
    """

    name: str
    weight: float
    index: DatasetIndex
    entries: EpisodeTable
    steps: NDArray[np.int32]
    number: int
    sources: tuple[SourceFormat, ...]

    @property
    def source(self) -> SourceFormat:
        """What its actions and states are."""
        return self.sources[self.number]


def open_datasets(config: DataConfig, split: str | None = None) -> tuple[StreamDataset, ...]:
    """Open one split of every data set of `data.url` or `data.sources`.

    In a validation split, data sets without an episode are left out, unless all of them have none.

    Args:
        config: Data sets, cameras, states and variants.
        split: One of `data.storage.episode_entry.SPLITS`, or `ALL_SPLITS`; None: `data.split`.

    Raises:
        InputError: A data set is missing or damaged, lacks such episodes, cameras, states or variants, its
            frames are not encoded like those of the others, or its states are not in the convention of the
            others of its embodiment.
    """
    split = split or config.split
    configured = _configured(config)
    caches = _open_caches(config, configured)
    indexes = [
        DatasetIndex.load(item.url, config.retry_seconds, cache)
        for item, cache in zip(configured, caches, strict=True)
    ]
    names = _names(configured)
    for index in indexes:
        _check_cameras(index, config.cameras)
        _check_variants(index, config.variants)
        _check_image(index, indexes[0])
        _check_states(index, indexes, config.state)
    sources = tuple(
        SourceFormat.of(name, index, item.chunk, config)
        for name, item, index in zip(names, configured, indexes, strict=True)
    )
    datasets: list[StreamDataset] = []
    for number, (name, item, index) in enumerate(zip(names, configured, indexes, strict=True)):
        entries = index.split(split)
        if len(entries):
            weight, steps = _weight(item, index), entries.lengths
            datasets.append(StreamDataset(name, weight, index, entries, steps, number, sources))
        elif split in (TRAINING_SPLIT, ALL_SPLITS) or not any(len(other.split(split)) for other in indexes):
            counts = ", ".join(f"{each} {len(index.split(each))}" for each in SPLITS)
            raise InputError(f"{index.url}: no episode in split {split!r}; the data set holds {counts}")
    return tuple(datasets)


def available_splits(config: DataConfig) -> frozenset[str]:
    """The splits of which at least one data set has an episode.

    Raises:
        InputError: As `open_datasets`, except for the checks of a split.
    """
    indexes = [DatasetIndex.load(item.url, config.retry_seconds) for item in _configured(config)]
    return frozenset(split for split in SPLITS if any(len(index.split(split)) for index in indexes))


def image_format(datasets: Sequence[StreamDataset]) -> ImageFormat:
    """How the frames of all data sets were encoded."""
    return datasets[0].index.image


def combined_fingerprint(datasets: Sequence[StreamDataset]) -> str:
    """Checksum of all data: the fingerprint of a single data set, else the sha256 of all in order."""
    prints = [dataset.index.fingerprint for dataset in datasets]
    return prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest()


def _configured(config: DataConfig) -> list[MixtureSource]:
    has_url = config.url not in ("", "???")
    if has_url == bool(config.sources):
        raise InputError(
            f"data.url={config.url!r} and {len(config.sources)} data.sources: give either data.url=... or "
            "data.sources=[{url: ..., weight: ...}, ...]"
        )
    return [MixtureSource(config.url)] if has_url else list(config.sources)


def _open_caches(config: DataConfig, configured: Sequence[MixtureSource]) -> list[EpisodeCache | None]:
    """The cache of each data set: on a disk where the settings have a folder, else in memory if that helps.

    In memory it serves ranks of one node that would each ask the same object store for the same episodes.
    """
    on_disk = open_cache(config.cache.dir, config.cache.size)
    remote = [is_object_store(item.url) for item in configured]
    if on_disk is not None or not config.cache.shared_memory or not any(remote) or ranks_of_this_node() < 2:
        return [on_disk] * len(configured)
    in_memory = open_shared_memory()
    return [in_memory if each else None for each in remote]


def _weight(item: MixtureSource, index: DatasetIndex) -> float:
    """The weight of the settings, else of the data set's recipe, else 1."""
    proposed = 1.0 if index.weight is None else index.weight
    return proposed if item.weight is None else item.weight


def _names(configured: Sequence[MixtureSource]) -> list[str]:
    """The last part of each URL, with a number where that is not unique."""
    short = [item.url.rstrip("/").rpartition("/")[2] for item in configured]
    numbered = [f"{name}_{number}" for number, name in enumerate(short)]
    names = [a if short.count(a) == 1 else b for a, b in zip(short, numbered, strict=True)]
    return names if len(set(names)) == len(names) else numbered  # x, x, x_0: with two of x_0


def _check_cameras(index: DatasetIndex, cameras: Sequence[str]) -> None:
    if not cameras or len(set(cameras)) < len(cameras):
        raise InputError(f"data.cameras={list(cameras)}, expected at least one camera, each once")
    for camera in cameras:
        if camera not in index.cameras:
            raise InputError(
                f"{index.url}: no camera {camera!r}, the data set has {', '.join(index.cameras)}; "
                "choose among these with data.cameras"
            )


def _check_variants(index: DatasetIndex, variants: int) -> None:
    if index.variants < variants:
        raise InputError(
            f"{index.url}: data.variants={variants}, but it was prepared with {index.variants}; prepare it "
            f"again with `worldvla prepare variants={variants}`, or set data.variants={index.variants}"
        )


def _check_image(index: DatasetIndex, first: DatasetIndex) -> None:
    if index.image != first.image:
        raise InputError(
            f"{index.url}: frames of {index.image.pixels} px encoded by the image tokenizer "
            f"{index.image.tokenizer_sha256[:12]}, but those of {first.url} have {first.image.pixels} px and "
            f"{first.image.tokenizer_sha256[:12]}; prepare them alike to train on them together"
        )


def _check_states(index: DatasetIndex, indexes: Sequence[DatasetIndex], used: bool) -> None:
    """Refuse states of two conventions of one embodiment, and missing or old ones where states are used."""
    numbers = index.statistics["states"]
    first = next(other for other in indexes if other.embodiment == index.embodiment)
    if used and index.embodiment.state_dim and not any(numbers.minimum) and not any(numbers.maximum):
        raise InputError(
            f"{index.url}: data.state=true, but all its states are zeros: its demonstrations had none; set "
            "data.state=false, or prepare it again from demonstrations with states"
        )
    old, other = (index, first) if first.has_hand_states else (first, index)
    if old.has_hand_states:
        return
    found = f"{old.url}: prepared by an earlier version, whose states may be turned by 90 degrees"
    if other.has_hand_states:
        raise InputError(f"{found} against those of {other.url}; prepare it again with `worldvla prepare`")
    if used:
        raise InputError(f"{found}; prepare it again with `worldvla prepare`, or set data.state=false")
