"""Start of a training on its ranks: first weights, files of the run folder, whether data and network fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from data.errors import InputError
from data.files import write_text_whole
from data.stream.loader import TokenStream
from data.stream.order.plan import DataPlan
from data.stream.order_choice import OrderReport
from data.stream.packing_advice import NOTABLE_PADDING, packing_advice
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from pretrain.checkpoint.load import load, load_initial_weights, load_metadata
from pretrain.checkpoint.location import checkpoint_location
from pretrain.checkpoint.origin import Origin, set_aside_newest
from pretrain.checkpoint.ready import DamagedCheckpointError, damage_error
from pretrain.checkpoint_metadata import settings_section
from pretrain.config import TrainingConfig
from pretrain.logs import log_to_file
from pretrain.model.action_head import check_head_fits
from pretrain.parallel.engine import Engine
from pretrain.rank_zero import run_on_rank_zero
from pretrain.run_folder import RunFolder
from pretrain.run_layout import rank_log_name
from pretrain.run_lock import exclusive_access
from pretrain.run_start import RunStart, check_dataset, open_run
from pretrain.sources import ranges_json
from pretrain.telemetry.events import EventLog
from pretrain.telemetry.recorder import Recorder

_LOG = logging.getLogger(__name__)


@contextmanager
def opened_run(
    config: TrainingConfig, folder: RunFolder, rank: int, start: RunStart | None
) -> Iterator[RunStart]:
    """The start of a run, for the length of a `with` block; every rank calls this.

    A command that has started the ranks hands its choice over, has locked the folder, and keeps their logs.
    Else rank 0 locks the folder until the end of the block and chooses (`open_run`), and every rank logs to a
    file in it.

    Args:
        config: Settings of the run.
        folder: Of the run.
        rank: Number of this rank.
        start: The command's choice, if there is one.

    Raises:
        InputError: The folder is in use, or it or a checkpoint cannot be used; the same on every rank.
    """
    if start is not None:
        yield start
        return
    with ExitStack() as lock:

        def choose() -> RunStart:
            lock.enter_context(exclusive_access(folder))
            folder.stop_request.unlink(missing_ok=True)  # of an earlier start
            return open_run(config, folder)

        chosen = run_on_rank_zero(choose)
        log_to_file(folder.logs / rank_log_name(rank), rank)
        yield chosen


def load_start(
    config: TrainingConfig,
    folder: RunFolder,
    start: RunStart,
    chosen_here: bool,
    engine: Engine,
    stream: TokenStream,
) -> tuple[RunStart, Mapping[str, Any]]:
    """Load the weights of a start; every rank calls it.

    Where the ranks have chosen it themselves and its files are damaged, the checkpoint is set aside and the
    one before is taken, as the command does for the ranks that it has started.

    Returns:
        The start that was loaded, and the metadata of `load_weights`.

    Raises:
        InputError: As for `load_weights`.
    """
    while True:
        try:
            return start, load_weights(start.origin, engine, stream)
        except DamagedCheckpointError as error:
            if not chosen_here:
                raise
            start = _start_before(config, folder, start, error)


def _start_before(
    config: TrainingConfig, folder: RunFolder, start: RunStart, error: DamagedCheckpointError
) -> RunStart:
    """Set the damaged checkpoint of a start aside and choose again; every rank calls it."""

    def choose() -> RunStart:
        step = set_aside_newest(checkpoint_location(config.checkpointing, folder), start.origin, error)
        _LOG.warning("%s; it is set aside, the run goes on from the one before", error)
        EventLog(folder.events).write({"event": "checkpoint_set_aside", "step": step, "error": str(error)})
        return open_run(config, folder)

    return run_on_rank_zero(choose)


def load_weights(origin: Origin | None, engine: Engine, stream: TokenStream) -> Mapping[str, Any]:
    """Load the weights of the origin, if any; to resume, the optimiser's state too. Every rank calls it.

    Returns:
        Metadata of the checkpoint that the run resumes from; those of a new run otherwise.

    Raises:
        DamagedCheckpointError: Files of the checkpoint are damaged; the same on every rank.
        InputError: The checkpoint is of another network, or (to resume) was trained on other data.
    """
    if origin is None:
        return {"tokens": 0}
    checkpoint = origin.checkpoint
    if not origin.resumes:
        load_initial_weights(checkpoint, engine)
        return {"tokens": 0}
    metadata = run_on_rank_zero(lambda: load_metadata(checkpoint))
    check_dataset(metadata, checkpoint, stream.urls, stream.fingerprint, stream.split, stream.plan.order)
    load(checkpoint, engine)
    if not isinstance(metadata.get("tokens"), int):
        raise damage_error(checkpoint, ["its metadata does not have the number of tokens"])
    return metadata


def report_start(
    recorder: Recorder, start: RunStart, metadata: Mapping[str, Any], config: TrainingConfig, step: int
) -> None:
    """Write an event that says which checkpoint the run resumes from or takes its first weights from.

    Args:
        recorder: Writes the event.
        start: Start of the run; random weights need no event.
        metadata: Metadata of the checkpoint that the run resumes from.
        config: Settings of the run.
        step: Optimiser steps done.
    """
    if start.origin is None:
        return
    path, parallel = str(start.origin.checkpoint), asdict(config.parallel)
    settings = {"parallel": parallel, "recompute": config.model.recompute}
    if start.origin.resumes:
        previous = settings_section(metadata, "parallel") or None
        recorder.event("resumed", step=step, checkpoint=path, parallel_before=previous, **settings)
    else:
        recorder.event("started", step=step, checkpoint=path, **settings)


def prepare_folder(config: TrainingConfig, folder: RunFolder, stream: TokenStream) -> None:
    """Write tokenizers and action ranges to the run folder, so that its checkpoints can be used alone.

    One rank calls this; it also tells the order of the windows and logs advice on packing.

    Raises:
        InputError: The folder cannot be written, or the image tokenizer is not the data set's.
    """
    order = tell_order(config, stream)
    advise_on_packing(stream.plan)
    text = TextTokenizer.load(config.data.text_tokenizer)
    image = ImageTokenizer.load(config.data.image_tokenizer)
    expected = stream.image.tokenizer_sha256
    if image.sha256 != expected:
        raise InputError(
            f"data.image_tokenizer={config.data.image_tokenizer or 'null (the one that ships)'} has checksum "
            f"{image.sha256[:12]}, the data set was prepared with {expected[:12]}; give that tokenizer"
        )
    try:
        EventLog(folder.events).write({"event": "order", **asdict(order)})
        text.save(folder.tokenizers)
        image.save(folder.image_tokenizer)
        write_text_whole(folder.action_ranges, json.dumps(ranges_json(stream.sources), indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"{folder.tokenizers}: cannot be written ({error.strerror}); set run.dir to a folder you may "
            "write to, or free space"
        ) from error


def tell_order(config: TrainingConfig, stream: TokenStream) -> OrderReport:
    """Log the order of the windows, and a warning where a rank's memory is too small for it."""
    report = stream.report_order(config.parallel.data)
    _LOG.info("%s", report)
    if report.warning is not None:
        _LOG.warning("%s", report.warning)
    return report


def advise_on_packing(plan: DataPlan) -> None:
    """Log advice if much of the sequences is padding and another length would waste less."""
    if plan.padding > NOTABLE_PADDING and (advice := packing_advice(plan)).notable:
        _LOG.warning("%s", advice)


def check_model_fits(config: TrainingConfig, stream: TokenStream) -> None:
    """Check that the network is large enough for the samples.

    Raises:
        InputError: Its vocabulary or its number of positions is too small, or its action head is not for the
            longest chunk and the widest action.
    """
    if stream.vocabulary_size > config.model.vocabulary_size:
        raise InputError(
            f"model.vocabulary_size={config.model.vocabulary_size}, but the tokenizer has ids up to "
            f"{stream.vocabulary_size - 1}; set at least {stream.vocabulary_size}"
        )
    if stream.longest_sample > config.model.max_positions:
        raise InputError(
            f"model.max_positions={config.model.max_positions}, but samples have up to "
            f"{stream.longest_sample} tokens; raise it, or let samples hold less (data.history, data.chunk)"
        )
    if config.model.action_head is not None:
        check_head_fits(config.model.action_head, stream.sources)
