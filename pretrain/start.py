"""What happens before the first step: checks, the run folder, and where the weights come from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch.distributed as dist

from data.errors import InputError
from data.stream.advice import NOTABLE_PADDING, packing_advice
from data.stream.loader import TokenStream
from data.stream.plan import Plan
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from pretrain.checkpoint.load import load, load_initial_weights, load_metadata
from pretrain.checkpoint.location import checkpoint_location
from pretrain.checkpoint.origin import Origin, choose_origin
from pretrain.config import TrainingConfig
from pretrain.parallel.engine import Engine
from pretrain.run_folder import RunFolder, write_atomically
from pretrain.telemetry.recorder import Recorder

IMAGE_TOKENIZER_FILE = "image_tokenizer.safetensors"

T = TypeVar("T")


def take_weights(origin: Origin | None, engine: Engine, stream: TokenStream) -> Mapping[str, Any]:
    """Load what the run goes on from or begins with, if anything.

    Returns:
        Metadata of the checkpoint that it goes on from; those of a new run otherwise.

    Raises:
        InputError: It is damaged, of another network, or (to go on from) was trained on other data.
    """
    if origin is None:
        return {"tokens": 0}
    if not origin.resumes:
        load_initial_weights(origin.checkpoint, engine)
        return {"tokens": 0}
    trained_on = load_metadata(origin.checkpoint).get("dataset")  # none: weights alone, which `load` refuses
    if trained_on not in (None, stream.fingerprint):
        raise InputError(
            f"{origin.checkpoint}: was trained on the data set {trained_on[:12]}, "
            f"{stream.place} is {stream.fingerprint[:12]}; give the same data, or begin a run of "
            "another name"
        )
    return load(origin.checkpoint, engine)


def announce(
    recorder: Recorder, origin: Origin | None, before: Mapping[str, Any], config: TrainingConfig, step: int
) -> str | None:
    """Note in the metrics what the run goes on from or begins with; the former, for the summary."""
    if origin is None:
        return None
    path, parallel = str(origin.checkpoint), asdict(config.parallel)
    if not origin.resumes:
        recorder.event("started", step=step, checkpoint=path, parallel=parallel)
        return None
    layout = before["config"]["parallel"]
    recorder.event("resumed", step=step, checkpoint=path, parallel_before=layout, parallel=parallel)
    return path


def newest_checkpoint(config: TrainingConfig, folder: RunFolder) -> Origin | None:
    """The run's newest checkpoint, whatever it began from this time; None: there is none."""
    settings = replace(config.checkpointing, resume="auto", start_from=None)
    location = checkpoint_location(config.checkpointing, folder)
    return choose_origin(settings, config.model, location, config.run.name)


def prepare_folder(config: TrainingConfig, folder: RunFolder, stream: TokenStream) -> Origin | None:
    """Open the run folder, put tokenizers and action ranges into it, and choose where the weights come from.

    Raises:
        InputError: The folder or a checkpoint cannot be used, or the image tokenizer is not the data set's.
    """
    place = checkpoint_location(config.checkpointing, folder)
    origin = choose_origin(config.checkpointing, config.model, place, config.run.name)
    folder.open(config)
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
        image.save(folder.tokenizers / IMAGE_TOKENIZER_FILE)
        write_atomically(folder.action_ranges, json.dumps(asdict(stream.action_ranges), indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"{folder.tokenizers}: cannot be written ({error.strerror}); set run.dir to a folder you may "
            "write to, or free space"
        ) from error
    return origin


def advise_on_packing(plan: Plan) -> None:
    """Say so if much of the sequences is padding and another length would waste less."""
    if plan.padding > NOTABLE_PADDING and (advice := packing_advice(plan)).notable:
        print(f"data: {advice}", file=sys.stderr, flush=True)


def check_model_fits(config: TrainingConfig, stream: TokenStream) -> None:
    """Check that the network is large enough for the samples.

    Raises:
        InputError: Its vocabulary or its positions are too few.
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


def on_first_rank(work: Callable[[], T]) -> T:
    """Do something on rank 0 alone; every rank gets its result or its InputError."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except InputError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise InputError(outcome[1])
    return outcome[0]
