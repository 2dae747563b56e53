"""Start of a training on its ranks: first weights, files of the run folder, whether data and network fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from data.errors import InputError
from data.files import write_text_whole
from data.stream.loader import TokenStream
from data.stream.packing_advice import NOTABLE_PADDING, packing_advice
from data.stream.plan import DataPlan
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from pretrain.checkpoint.load import load, load_initial_weights, load_metadata
from pretrain.checkpoint.origin import Origin
from pretrain.config import TrainingConfig
from pretrain.logs import log_to_file
from pretrain.parallel.engine import Engine
from pretrain.rank_zero import run_on_rank_zero
from pretrain.run_folder import RunFolder
from pretrain.run_layout import rank_log_name
from pretrain.run_start import RunStart, open_run
from pretrain.telemetry.recorder import Recorder

_LOG = logging.getLogger(__name__)


def open_run_on_ranks(config: TrainingConfig, folder: RunFolder, rank: int) -> RunStart:
    """`open_run` on rank 0 for all ranks, which then also log to files in the folder; every rank calls this.

    For ranks that no command has started: those of a command get a `RunStart` and have their logs already.

    Raises:
        InputError: The folder or a checkpoint cannot be used.
    """
    start = run_on_rank_zero(lambda: open_run(config, folder))
    log_to_file(folder.logs / rank_log_name(rank), rank)
    return start


def load_weights(origin: Origin | None, engine: Engine, stream: TokenStream) -> Mapping[str, Any]:
    """Load the weights of the origin, if there is one; to resume, also the optimiser's state.

    Returns:
        Metadata of the checkpoint that the run resumes from; those of a new run otherwise.

    Raises:
        InputError: The checkpoint is damaged, of another network, or (to resume) was trained on other data.
    """
    if origin is None:
        return {"tokens": 0}
    if not origin.resumes:
        load_initial_weights(origin.checkpoint, engine)
        return {"tokens": 0}
    dataset = load_metadata(origin.checkpoint).get("dataset")  # None: weights alone, which `load` refuses
    if dataset not in (None, stream.fingerprint):
        raise InputError(
            f"{origin.checkpoint}: was trained on the data set {dataset[:12]}, "
            f"{stream.urls} is {stream.fingerprint[:12]}; give the same data, or begin a run of "
            "another name"
        )
    return load(origin.checkpoint, engine)


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
    if start.origin.resumes:
        previous = metadata["config"]["parallel"]
        recorder.event("resumed", step=step, checkpoint=path, parallel_before=previous, parallel=parallel)
    else:
        recorder.event("started", step=step, checkpoint=path, parallel=parallel)


def prepare_folder(config: TrainingConfig, folder: RunFolder, stream: TokenStream) -> None:
    """Write tokenizers and action ranges to the run folder, so that its checkpoints can be used alone.

    One rank calls this; it also logs advice on packing.

    Raises:
        InputError: The folder cannot be written, or the image tokenizer is not the data set's.
    """
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
        text.save(folder.tokenizers)
        image.save(folder.image_tokenizer)
        write_text_whole(folder.action_ranges, json.dumps(asdict(stream.action_ranges), indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"{folder.tokenizers}: cannot be written ({error.strerror}); set run.dir to a folder you may "
            "write to, or free space"
        ) from error


def advise_on_packing(plan: DataPlan) -> None:
    """Log advice if much of the sequences is padding and another length would waste less."""
    if plan.padding > NOTABLE_PADDING and (advice := packing_advice(plan)).notable:
        _LOG.warning("%s", advice)


def check_model_fits(config: TrainingConfig, stream: TokenStream) -> None:
    """Check that the network is large enough for the samples.

    Raises:
        InputError: Its vocabulary or its number of positions is too small.
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
