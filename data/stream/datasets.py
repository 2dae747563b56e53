"""The data sets of a training, opened and checked to go together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig, MixtureSource
from data.errors import InputError
from data.storage.episode_cache import open_cache
from data.storage.index import SPLITS, DatasetIndex, EpisodeTable, ImageFormat

_TRAINED = SPLITS[0]


@dataclass(frozen=True, slots=True)
class Source:
    """One split of one data set.

    Attributes:
        name: Short and unique among the sources: the last part of the URL.
        weight: Relative share of the samples.
        index: The data set.
        entries: The episodes of the split; the stream knows them by their number in here.
        steps: int32 [E], time steps of each.
    """

    name: str
    weight: float
    index: DatasetIndex
    entries: EpisodeTable
    steps: NDArray[np.int32]


def open_sources(config: DataConfig, split: str = _TRAINED) -> tuple[Source, ...]:
    """One split of every data set of `data.url` or `data.sources`.

    Of several data sets, those without an episode in a split that is not trained on are left out of it.

    Raises:
        InputError: A data set is not there or not whole, has no such episodes or cameras, or its frames are
            not made as those of the others.
    """
    wanted = _wanted(config)
    cache = open_cache(config.cache)
    indexes = [DatasetIndex.load(source.url, config.retry_seconds, cache) for source in wanted]
    sources: list[Source] = []
    for name, source, index in zip(_names(wanted), wanted, indexes, strict=True):
        entries = index.split(split)
        if len(entries):
            sources.append(Source(name, source.weight, index, entries, entries.lengths))
        elif split == _TRAINED or not any(len(other.split(split)) for other in indexes):
            held = ", ".join(f"{each} {len(index.split(each))}" for each in SPLITS)
            raise InputError(f"{index.url}: no episode in split {split!r}; the data set holds {held}")
        _check_cameras(index, config.cameras)
        _check_image(index, indexes[0])
    return tuple(sources)


def splits_held(config: DataConfig) -> frozenset[str]:
    """The splits of which some data set has an episode.

    Raises:
        InputError: As `open_sources`, but for what depends on the split.
    """
    indexes = [DatasetIndex.load(source.url, config.retry_seconds) for source in _wanted(config)]
    return frozenset(split for split in SPLITS if any(len(index.split(split)) for index in indexes))


def image_format(sources: Sequence[Source]) -> ImageFormat:
    """How the frames of all became codes."""
    return sources[0].index.image


def combined_fingerprint(sources: Sequence[Source]) -> str:
    """Checksum of what is trained on: of one data set its own, of several of all of these in order."""
    prints = [source.index.fingerprint for source in sources]
    return prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest()


def _wanted(config: DataConfig) -> list[MixtureSource]:
    given = config.url not in ("", "???")
    if given == bool(config.sources):
        raise InputError(
            f"data.url={config.url!r} and {len(config.sources)} data.sources: give either data.url=... or "
            "data.sources=[{url: ..., weight: ...}, ...]"
        )
    return [MixtureSource(config.url)] if given else list(config.sources)


def _names(wanted: Sequence[MixtureSource]) -> list[str]:
    """The last part of each URL, with a number where that is not unique."""
    short = [source.url.rstrip("/").rpartition("/")[2] for source in wanted]
    return [name if short.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(short)]


def _check_cameras(index: DatasetIndex, cameras: Sequence[str]) -> None:
    if not cameras or len(set(cameras)) < len(cameras):
        raise InputError(f"data.cameras={list(cameras)}, expected at least one camera, each once")
    for camera in cameras:
        if camera not in index.cameras:
            raise InputError(
                f"{index.url}: no camera {camera!r}, the data set has {', '.join(index.cameras)}; "
                "choose among these with data.cameras"
            )


def _check_image(index: DatasetIndex, first: DatasetIndex) -> None:
    if index.image != first.image:
        raise InputError(
            f"{index.url}: frames of {index.image.pixels} px encoded by the image tokenizer "
            f"{index.image.tokenizer_sha256[:12]}, but those of {first.url} have {first.image.pixels} px and "
            f"{first.image.tokenizer_sha256[:12]}; prepare them alike to train on them together"
        )
