"""Demonstrations to episode shards: filter no-ops, resize, encode frames, write, index.

The output depends on the demonstrations, the image tokenizer and the settings alone, byte for byte, however
many workers make it and in which order. Finished shards are kept when a preparation is interrupted
(`data.prepare.parts`). The index is written last: a data set that was not finished has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.config import PrepareConfig
from data.contracts import Demonstration, Episode
from data.errors import InputError
from data.prepare.frames import FITS, moving_steps, resize_frames, square_frames
from data.prepare.index_builder import RANGES, FrameFormat, assemble_index, commit_index, explicit_ranges
from data.prepare.parts import Part, PartRecord, find_record, plan_parts, write_record
from data.sources.interface import DemonstrationReference, Source
from data.sources.registry import open_source
from data.storage.index import DatasetIndex
from data.storage.shards import COMPRESSIONS, ShardWriter, check_compression, check_key
from data.storage.store import open_store
from data.tokens.vocabulary import ACTION_DIM, IMAGE_CODE_COUNT, STATE_DIM, grid_size_token


class FrameEncoder(FrameFormat, Protocol):
    """What `prepare` needs of an image tokenizer (`data.tokens.image.ImageTokenizer` is one)."""

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Frames uint8 [N, H, W, 3] -> codes uint16 [N, R, C]."""
        ...


Progress = Callable[[int, int], None]
"""Called with the number of episodes done and their total."""

Replay = Callable[[DemonstrationReference, int], Demonstration | None]
"""Acts a demonstration out again in its simulator, frames that many pixels wide; None: it did not succeed."""

RunParts = Callable[[Sequence[Part], Callable[[int], None]], None]
"""Finishes parts, somewhere, and tells the number of episodes done so far."""


def prepare(
    preparer: Preparer, progress: Progress | None = None, run_parts: RunParts | None = None
) -> DatasetIndex:
    """Write the data set of a `Preparer`'s settings and return its index.

    Writing the same data set again changes nothing; another one at the same place is refused.

    Args:
        preparer: Settings and image tokenizer.
        progress: Told how far the work is.
        run_parts: Who does the work; None: this process, part by part.

    Raises:
        InputError: A demonstration is not valid, the tokenizer is for another resolution, the place
            cannot be written or holds another data set.
    """
    parts = preparer.plan()
    total = sum(len(part.references) for part in parts)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)

    tell(0)
    if run_parts is None:
        preparer.finish_all(parts, tell)
    else:
        run_parts(parts, tell)
    index = assemble_index(preparer.config, preparer.tokenizer, parts)
    commit_index(index)
    return index


class Preparer:
    """What one process needs to finish parts.

    Args:
        config: Settings.
        tokenizer: Encodes frames.
        replay: Needed where `config.replay` is set.
    """

    def __init__(self, config: PrepareConfig, tokenizer: FrameEncoder, replay: Replay | None = None) -> None:
        self.config, self.tokenizer, self._replay = config, tokenizer, replay

    def plan(self) -> list[Part]:
        """Divide the work.

        Raises:
            InputError: Whatever can be refused before any work is done.
        """
        config = self.config
        _check(config, self.tokenizer, self._replay)
        references = self._source.references()
        _check_references(config, references)
        codes = self.tokenizer.rows * self.tokenizer.columns * len(references[0].cameras)
        depends_on = {
            name: asdict(config)[name]
            for name in ("format", "cameras", "action", "state", "instruction", "rotate", "fit", "replay")
        }
        if config.compression != COMPRESSIONS[0]:
            depends_on["compression"] = config.compression
        return plan_parts(
            references,
            step_bytes=codes * np.dtype(np.uint16).itemsize + (ACTION_DIM + STATE_DIM) * 4,
            limit=round(config.shard_megabytes * 1_000_000),
            settings=[depends_on, config.batch_size, self.tokenizer.pixels, self.tokenizer.sha256],
        )

    def finish(self, part: Part, tell: Callable[[int], None]) -> PartRecord:
        """Encode and write a part, unless it is there already.

        Args:
            part: One of `plan`.
            tell: Told the number of its episodes done.

        Raises:
            InputError: A demonstration is not valid, or the place cannot be written.
        """
        store = open_store(self.config.out)
        record = find_record(store, part)
        if record is None:
            record = self._make(part, tell)
        tell(len(part.references))
        return record

    def finish_all(self, parts: Sequence[Part], tell: Callable[[int], None]) -> None:
        """Finish all parts, one after the other."""
        before = 0
        for part in parts:
            self.finish(part, lambda done, before=before: tell(before + done))
            before += len(part.references)

    @cached_property
    def _source(self) -> Source:
        return open_source(self.config)

    def _make(self, part: Part, tell: Callable[[int], None]) -> PartRecord:
        store = open_store(self.config.out)
        writer = ShardWriter(store, limit=None, first=part.number, compression=self.config.compression)
        episodes: list[tuple[DemonstrationReference, int]] = []
        values: list[NDArray[np.float32]] = []
        dropped: list[str] = []
        for done, reference in enumerate(part.references):
            if done:
                tell(done)
            demonstration = self._read(reference)
            if demonstration is None:
                dropped.append(reference.key)
                continue
            episode = encode_demonstration(
                demonstration, self.tokenizer, self.config.batch_size, self.config.fit
            )
            writer.add(episode)
            episodes.append((reference, episode.length))
            values.append(np.concatenate([episode.actions, episode.states], axis=1))
        return write_record(store, part, writer.close(), episodes, values, dropped)

    def _read(self, reference: DemonstrationReference) -> Demonstration | None:
        if not self.config.replay:
            return self._source.read(reference)
        assert self._replay is not None  # `_check` refused it
        return self._replay(reference, self.tokenizer.pixels)


def encode_demonstration(
    demonstration: Demonstration, tokenizer: FrameEncoder, batch_size: int = 64, fit: str = "refuse"
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
        kept = resize_frames(square_frames(frames[keep], fit), tokenizer.pixels)
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


def _check(config: PrepareConfig, tokenizer: FrameEncoder, replay: Replay | None) -> None:
    """Settings that cannot work."""
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
    check_compression(config.compression)
    if config.fit not in FITS:
        raise InputError(f"fit={config.fit}: expected one of {', '.join(FITS)}")
    if config.batch_size < 1:
        raise InputError(f"batch_size is {config.batch_size}, expected at least 1")
    if not 0 < config.shard_megabytes < 1e6:
        raise InputError(f"shard_megabytes is {config.shard_megabytes}, expected a number above 0, below 1e6")
    if config.ranges not in RANGES:
        raise InputError(f"ranges={config.ranges}: expected one of {', '.join(RANGES)}")
    if (config.action_minimum is None) != (config.action_maximum is None):
        raise InputError("action_minimum and action_maximum belong together; give both or none")
    explicit_ranges(config)
    if config.replay and replay is None:
        raise InputError("replay=true: needs a simulator, which this program was called without")


def _check_references(config: PrepareConfig, references: Sequence[DemonstrationReference]) -> None:
    """Keys that cannot name episodes, and demonstrations that do not belong together."""
    keys = Counter(check_key(reference.key) for reference in references)
    cameras = references[0].cameras
    for reference in references:
        if keys[reference.key] > 1:
            raise InputError(
                f"{reference.path}: another file of {config.source} gives the same episode key "
                f"{reference.key}; rename one of them"
            )
        if reference.cameras != cameras:
            raise InputError(
                f"{reference.path}: {reference.item} has cameras {', '.join(reference.cameras)} but "
                f"{references[0].key} has {', '.join(cameras)}; prepare them as two data sets, or name those "
                "that all have with cameras={...}"
            )
