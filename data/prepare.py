"""Demonstrations to episode shards: filter no-ops, resize, encode frames, write, index.

The output depends on the demonstrations, the image tokenizer and the settings alone, byte for byte. The
index is written last: a data set that was not finished has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.config import PrepareConfig
from data.contracts import Demonstration, Episode
from data.errors import InputError
from data.frames import moving_steps, resize_frames
from data.sources.libero_hdf5 import DemonstrationReference, list_demonstrations, read_demonstration
from data.stats import summarise
from data.storage.index import INDEX_FILE, DatasetIndex, EpisodeEntry, ImageFormat
from data.storage.shards import Location, ShardWriter, check_key
from data.storage.store import open_store
from data.tokens.action import ActionRanges
from data.tokens.vocabulary import IMAGE_CODE_COUNT, grid_size_token


class FrameEncoder(Protocol):
    """What `prepare` needs of an image tokenizer (`data.tokens.image.ImageTokenizer` is one)."""

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
        """Codes are below it."""
        ...

    @property
    def sha256(self) -> str:
        """Checksum of the weights."""
        ...

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Frames uint8 [N, H, W, 3] -> codes uint16 [N, R, C]."""
        ...


Progress = Callable[[int, int], None]
"""Called with the number of episodes done and their total."""


def prepare(config: PrepareConfig, tokenizer: FrameEncoder, progress: Progress | None = None) -> DatasetIndex:
    """Write the data set of `config.source` below `config.out` and return its index.

    Writing the same data set again changes nothing; another one at the same place is refused.

    Raises:
        InputError: A demonstration is not valid, the tokenizer is for another resolution, the place
            cannot be written or holds another data set.
    """
    references = list_demonstrations(config.source)
    _check(config, tokenizer, references)
    writer = ShardWriter(open_store(config.out), config.shard_megabytes * 1_000_000)
    prepared: list[_Prepared] = []
    for done, reference in enumerate(references):
        if progress is not None:
            progress(done, len(references))
        episode = encode_demonstration(read_demonstration(reference), tokenizer, config.batch_size)
        writer.add(episode)
        prepared.append(_Prepared(reference, tuple(sorted(episode.codes)), episode.actions, episode.states))
    index = _make_index(config.out, tokenizer, prepared, writer.close())
    _commit(index)
    if progress is not None:
        progress(len(references), len(references))
    return index


def encode_demonstration(
    demonstration: Demonstration, tokenizer: FrameEncoder, batch_size: int = 64
) -> Episode:
    """Drop no-ops, resize the frames of every camera and encode them, `batch_size` at a time.

    Raises:
        InputError: No step of the demonstration moves the robot.
    """
    keep = moving_steps(demonstration.actions)
    if not keep.any():
        raise InputError(
            f"{demonstration.key}: none of its {len(keep)} steps moves the robot, expected at least one; "
            "delete this demonstration"
        )
    codes: dict[str, NDArray[np.uint16]] = {}
    for camera, frames in demonstration.frames.items():
        kept = resize_frames(frames[keep], tokenizer.pixels)
        batches = [kept[i : i + batch_size] for i in range(0, len(kept), batch_size)]
        codes[camera] = np.concatenate([tokenizer.encode(batch) for batch in batches])
    return Episode(
        key=demonstration.key,
        suite=demonstration.suite,
        task=demonstration.task,
        instruction=demonstration.instruction,
        codes=codes,
        actions=demonstration.actions[keep],
        states=demonstration.states[keep],
    )


def assign_splits(tasks: Sequence[str]) -> list[str]:
    """The split of each demonstration, from the task of each, in their order (WorldVLA's rule).

    Of the sorted tasks the first ceil(0.9 T) are in domain, the others `val_ood`; of the n demonstrations
    of a task in domain the first ceil(0.9 n) are `train`, the others `val_ind`.
    """
    names = sorted(set(tasks))
    in_domain = set(names[: _nine_tenths(len(names))])
    counts = Counter(tasks)
    seen: Counter[str] = Counter()
    splits: list[str] = []
    for task in tasks:
        seen[task] += 1
        trains = seen[task] <= _nine_tenths(counts[task])
        splits.append("val_ood" if task not in in_domain else "train" if trains else "val_ind")
    return splits


def _check(
    config: PrepareConfig, tokenizer: FrameEncoder, references: Sequence[DemonstrationReference]
) -> None:
    """Whatever can be refused before any work is done."""
    if tokenizer.pixels != config.resolution:
        raise InputError(
            f"the image tokenizer takes frames of {tokenizer.pixels} pixels but resolution is "
            f"{config.resolution}; set resolution={tokenizer.pixels} or give another image_tokenizer"
        )
    try:
        grid_size_token(tokenizer.pixels)
    except ValueError as error:
        raise InputError(f"{error}; give an image_tokenizer of another resolution") from error
    if tokenizer.codebook_size > IMAGE_CODE_COUNT:
        raise InputError(
            f"the image tokenizer has {tokenizer.codebook_size} codes, expected at most {IMAGE_CODE_COUNT}, "
            "as many as the vocabulary holds; give another image_tokenizer"
        )
    for name, value in (("shard_megabytes", config.shard_megabytes), ("batch_size", config.batch_size)):
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    keys = Counter(check_key(reference.key) for reference in references)
    for reference in references:
        if keys[reference.key] > 1:
            raise InputError(
                f"{reference.path}: another file of {config.source} gives the same episode key "
                f"{reference.key}; rename one of them"
            )


def _nine_tenths(count: int) -> int:
    return -(-9 * count // 10)  # rounded up, in whole numbers


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What index and statistics need of an episode whose codes are already written."""

    reference: DemonstrationReference
    cameras: tuple[str, ...]
    actions: NDArray[np.float32]
    states: NDArray[np.float32]


def _make_index(
    url: str, tokenizer: FrameEncoder, prepared: Sequence[_Prepared], locations: Sequence[Location]
) -> DatasetIndex:
    cameras = prepared[0].cameras
    for item in prepared:
        if item.cameras != cameras:
            raise InputError(
                f"{item.reference.path}: {item.reference.group} has cameras {', '.join(item.cameras)} but "
                f"{prepared[0].reference.key} has {', '.join(cameras)}; prepare them as two data sets"
            )
    splits = assign_splits([f"{item.reference.suite}/{item.reference.task}" for item in prepared])
    entries = [
        EpisodeEntry(
            key=item.reference.key,
            shard=location.shard,
            offset=location.offset,
            size=location.size,
            sha256=location.sha256,
            length=len(item.actions),
            suite=item.reference.suite,
            task=item.reference.task,
            instruction=item.reference.instruction,
            split=split,
        )
        for item, location, split in zip(prepared, locations, splits, strict=True)
    ]
    training = [item for item, split in zip(prepared, splits, strict=True) if split == "train"]
    return DatasetIndex(
        image=ImageFormat(
            pixels=tokenizer.pixels,
            rows=tokenizer.rows,
            columns=tokenizer.columns,
            codebook_size=tokenizer.codebook_size,
            tokenizer_sha256=tokenizer.sha256,
        ),
        cameras=cameras,
        action_ranges=ActionRanges(),
        statistics={
            "actions": summarise([item.actions for item in training]),
            "states": summarise([item.states for item in training]),
        },
        episodes=tuple(entries),
        url=url,
    )


def _commit(index: DatasetIndex) -> None:
    """Write the index, unless another data set is there; its shards have other names and are untouched."""
    store = open_store(index.url)
    if store.exists(INDEX_FILE) and store.read(INDEX_FILE) != index.to_json():
        raise InputError(
            f"{store.url}: holds another data set already (its {INDEX_FILE} differs); choose another out= "
            f"or delete {INDEX_FILE} there"
        )
    store.write(INDEX_FILE, index.to_json())
