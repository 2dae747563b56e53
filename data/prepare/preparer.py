"""Demonstrations to episode shards: filter no-ops, resize, encode frames, write, index.

The output depends only on the demonstrations, the image tokenizer and the settings, byte for byte, for any
number and order of workers. Finished shards survive an interruption (`data.prepare.parts`). The index is
written last: an unfinished data set has none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data.config import PrepareConfig
from data.contracts import MAX_VARIANTS, Demonstration, Episode
from data.errors import InputError
from data.prepare.encoding import FrameEncoder, encode_demonstration
from data.prepare.index_builder import build_index, check_out, check_same, check_writable, commit_index
from data.prepare.parts import Part, PartRecord, finished_record, plan_parts, write_record
from data.prepare.ranges import check_range_settings, check_ranges
from data.prepare.screening import screened
from data.sources.bad_demonstrations import allowed_bad, check_bad
from data.sources.interface import DemonstrationReference, DemonstrationSource
from data.sources.registry import check_place, open_source
from data.storage.index import DatasetIndex
from data.storage.shards import ShardWriter, check_key
from data.storage.store import open_store
from data.tokens.vocabulary import IMAGE_CODE_COUNT, grid_size_token

Progress = Callable[[int, int], None]
"""Called with the number of episodes done and their total."""

Replay = Callable[[DemonstrationReference, int], Demonstration | None]
"""Replays a demonstration in its simulator with frames of that many pixels; None: it did not succeed."""

RunParts = Callable[[Sequence[Part], Callable[[int], None]], None]
"""Finishes parts on some workers, and calls its second argument with the number of episodes done so far."""

_ENCODING_SETTINGS = (
    "format",
    "cameras",
    "action",
    "state",
    "instruction",
    "rotate",
    "fit",
    "resize",
    "replay",
)
# In the plan where they are set: data sets prepared before they existed are resumed.
_LATER_ENCODING_SETTINGS = ("missing", "no_ops", "drop_first", "draw_camera", "draw_seed")


def prepare(
    preparer: Preparer, progress: Progress | None = None, run_parts: RunParts | None = None
) -> DatasetIndex:
    """Write the data set of a `Preparer`'s settings and return its index.

    Writing the same data set again changes nothing; another one at the same place is refused.

    Args:
        preparer: Settings and image tokenizer.
        progress: Called as the episodes are finished.
        run_parts: Finishes the parts; None: this process, part by part.

    Raises:
        InputError: A demonstration is invalid, the tokenizer has another resolution, or `out` cannot be
            written or holds another data set.
    """
    check_out(preparer.config.out)
    parts = preparer.plan()
    check_same(preparer.config, preparer.tokenizer, parts)
    check_writable(preparer.config.out)
    total = sum(len(part.references) for part in parts)

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    report(0)
    if run_parts is None:
        preparer.finish_all(parts, report)
    else:
        run_parts(parts, report)
    index, left_out = build_index(preparer.config, preparer.tokenizer, parts)
    commit_index(index, left_out)
    return index


class Preparer:
    """Plans and finishes parts in one process.

    Args:
        config: Settings.
        tokenizer: Encodes frames.
        replay: Required where `config.replay` is set.
    """

    def __init__(self, config: PrepareConfig, tokenizer: FrameEncoder, replay: Replay | None = None) -> None:
        self.config, self.tokenizer, self._replay = config, tokenizer, replay

    def plan(self) -> list[Part]:
        """Divide the demonstrations into parts.

        Raises:
            InputError: Invalid settings or demonstrations, as far as they are known before any encoding.
        """
        config = self.config
        _check_settings(config, self.tokenizer, self._replay)
        check_place(config, config.out)
        references = screened(self._source, config)
        _check_references(config, references)
        cameras = max(len(reference.cameras) for reference in references)  # those of a bad one may be unknown
        robot = self._source.embodiment()
        check_ranges(config, robot)  # refused before anything is encoded
        given, defaults = asdict(config), asdict(PrepareConfig())
        depends_on = {name: given[name] for name in _ENCODING_SETTINGS}
        depends_on |= {n: given[n] for n in _LATER_ENCODING_SETTINGS if given[n] != defaults[n]}
        if config.compression != "none":
            depends_on["compression"] = config.compression
        if config.variants:
            depends_on |= {"variants": config.variants, "augmentation": asdict(config.augmentation)}
        views = cameras * (1 + config.variants)
        codes = self.tokenizer.rows * self.tokenizer.columns * views
        return plan_parts(
            references,
            step_bytes=codes * np.dtype(np.uint16).itemsize + robot.action_dim * 8 + robot.state_dim * 4,
            limit=round(config.shard_megabytes * 1_000_000),
            settings=[depends_on, config.batch_size, self.tokenizer.pixels, self.tokenizer.sha256],
            allowed_bad=allowed_bad(config.skip_bad, len(references)),
            embodiment=robot,
            variants=config.variants,
            state=self._source.files.state,
        )

    def finish(self, part: Part, report: Callable[[int], None]) -> PartRecord:
        """Encode and write a part, unless it is already finished.

        Args:
            part: One of `plan`.
            report: Called with the number of its episodes done.

        Raises:
            InputError: A demonstration is invalid, or `out` cannot be written.
        """
        store = open_store(self.config.out)
        record = finished_record(store, part)
        if record is None:
            record = self._write_part(part, report)
        report(len(part.references))
        return record

    def finish_all(self, parts: Sequence[Part], report: Callable[[int], None]) -> None:
        """Finish all parts, one after the other."""
        before = 0
        for part in parts:
            self.finish(part, lambda done, before=before: report(before + done))
            before += len(part.references)

    def close(self) -> None:
        """Remove what was fetched of a source in an object store; the preparer can still be used."""
        if "_source" in self.__dict__:
            self._source.files.close()

    @cached_property
    def _source(self) -> DemonstrationSource:
        return open_source(self.config)

    def _write_part(self, part: Part, report: Callable[[int], None]) -> PartRecord:
        store = open_store(self.config.out)
        writer = ShardWriter(store, limit=None, first=part.number, compression=self.config.compression)
        episodes: list[tuple[DemonstrationReference, int]] = []
        values: list[NDArray[np.float64]] = []
        dropped: list[str] = []
        skipped: dict[str, str] = {}
        for done, reference in enumerate(part.references):
            if done:
                report(done)
            try:
                episode = self._encoded(reference)
            except InputError as error:
                skipped[reference.key] = str(error)
                check_bad(skipped, part.allowed_bad, self.config.source)
                continue
            if episode is None:
                dropped.append(reference.key)
                continue
            writer.add(episode)
            episodes.append((reference, episode.length))
            values.append(np.concatenate([episode.actions, episode.states.astype(np.float64)], axis=1))
        return write_record(store, part, writer.close(), episodes, values, dropped, skipped)

    def _encoded(self, reference: DemonstrationReference) -> Episode | None:
        """A demonstration as an episode; None: it did not succeed in its replay (InputError: it is bad)."""
        if reference.fault:
            raise InputError(reference.fault)
        demonstration = self._read(reference)
        if demonstration is None:
            return None
        return encode_demonstration(demonstration, self.tokenizer, self.config, self._source.no_ops())

    def _read(self, reference: DemonstrationReference) -> Demonstration | None:
        if not self.config.replay:
            return self._source.read(reference)
        assert self._replay is not None  # refused by `_check_settings`
        return self._replay(reference, self.tokenizer.pixels)


def _check_settings(config: PrepareConfig, tokenizer: FrameEncoder, replay: Replay | None) -> None:
    """Refuse invalid settings (InputError)."""
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
    if config.batch_size < 1:
        raise InputError(f"batch_size is {config.batch_size}, expected at least 1")
    if not 0 < config.shard_megabytes < 1e6:
        raise InputError(f"shard_megabytes is {config.shard_megabytes}, expected a number above 0, below 1e6")
    check_range_settings(config)
    if not 0 <= config.variants <= MAX_VARIANTS:
        raise InputError(f"variants is {config.variants}, expected 0 to {MAX_VARIANTS}")
    if config.variants:
        config.augmentation.check()
    if config.weight is not None and not 0 < config.weight < math.inf:
        raise InputError(f"weight={config.weight:g}: expected a number above 0")
    if config.replay and replay is None:
        raise InputError("replay=true: needs a simulator, which this program was called without")


def _check_references(config: PrepareConfig, references: Sequence[DemonstrationReference]) -> None:
    """Refuse invalid or equal keys, different cameras, and states that do not suit `replay` (InputError)."""
    keys = Counter(check_key(reference.key) for reference in references)
    good = [reference for reference in references if not reference.fault]
    for reference in references:
        if keys[reference.key] > 1:
            raise InputError(
                f"{reference.path}: another file of {config.source} gives the same episode key "
                f"{reference.key}; rename one of them"
            )
    cameras = good[0].cameras
    for reference in good:
        if reference.turned_states and not config.replay:
            raise InputError(
                f"{reference.path}: collected by an earlier version, whose states are turned by 90 degrees; "
                "collect again, or prepare with replay=true, which records them anew"
            )
        if reference.displaced and config.replay:
            raise InputError(
                f"{reference.path}: {reference.item} begins displaced, from where the hand had been moved "
                "to, which the settling steps of a replay would change; prepare with replay=false"
            )
        if reference.cameras != cameras:
            raise InputError(
                f"{reference.path}: {reference.item} has cameras {', '.join(reference.cameras)} but "
                f"{good[0].key} has {', '.join(cameras)}; prepare them as two data sets, or name those "
                "that all have with cameras={...}"
            )
