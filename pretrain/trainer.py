"""The training loop, the same under Ray and under torchrun."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch.distributed as dist

from data.errors import InputError
from data.stream.loader import TokenStream
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from pretrain.checkpoint.load import load, load_metadata, load_start
from pretrain.checkpoint.origin import Origin, choose_origin
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.checks import check_hardware, check_training
from pretrain.config import TrainingConfig
from pretrain.optim import learning_rate
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.mesh import Mesh
from pretrain.run_folder import RunFolder
from pretrain.settings import to_mapping
from pretrain.telemetry.recorder import Recorder, check_finite

IMAGE_TOKENIZER_FILE = "image_tokenizer.safetensors"

T = TypeVar("T")


def train(config: TrainingConfig) -> None:
    """Train from the newest checkpoint (or the beginning) to the last step; every rank calls it.

    The ranks are those of the process group that exists, or of the environment that torchrun sets.

    Raises:
        InputError: Settings, data, run folder or checkpoint that this run cannot use.
        CheckpointError: A checkpoint could not be written.
        DivergedError: Loss or gradient norm is no longer finite.
    """
    check_training(config)
    groups = ProcessGroups.create(Mesh(config.parallel.tensor, config.parallel.data))
    check_hardware(config, groups.device)
    folder = RunFolder.of(config.run)
    with TokenStream(config.data, config.trainer, config.trainer.seed) as stream:
        check_model_fits(config, stream)
        origin = on_first_rank(lambda: prepare_folder(config, folder, stream))
        engine = Engine.build(config, groups, draw=origin is None)
        before = take_weights(origin, engine, stream)
        writer = CheckpointWriter(folder.checkpoints, engine, config.checkpointing.keep_last)
        recorder = Recorder(config, folder, groups, engine.step_count, before["tokens"])
        resumed_from = announce(recorder, origin, before, config, engine.step_count)
        last = min(config.trainer.steps, config.trainer.stop_after or config.trainer.steps)
        while engine.step_count < last:
            start = time.perf_counter()
            batches = stream.micro_batches(engine.step_count, groups.data_rank, groups.mesh.data)
            recorder.fed(batches, seconds=time.perf_counter() - start)
            rate = learning_rate(config.optim, engine.step_count, config.trainer.steps)
            result = engine.step(batches, rate)
            step = engine.step_count
            recorder.record(step, result, rate)
            if step % config.checkpointing.every == 0 or step == last:
                check_finite(step, result)
                writer.save(step, metadata(config, stream, recorder.total_tokens()))
                recorder.saved(writer.stall)
                recorder.summarise(step, resumed_from)
        writer.wait()
        recorder.summarise(engine.step_count, resumed_from)
        recorder.close()


def metadata(config: TrainingConfig, stream: TokenStream, tokens: int) -> dict[str, Any]:
    """What a checkpoint holds besides weights and moments; the order of the data needs no more."""
    return {"config": to_mapping(config), "dataset": stream.index.fingerprint, "tokens": tokens}


def take_weights(origin: Origin | None, engine: Engine, stream: TokenStream) -> Mapping[str, Any]:
    """Load what the run goes on from or begins with, if anything.

    Returns:
        Metadata of the checkpoint that it goes on from; those of a new run otherwise.

    Raises:
        InputError: It is damaged, of another network, or (to go on from) was trained on other data.
    """
    if origin is None:
        return {"tokens": 0}
    if not origin.goes_on:
        load_start(origin.checkpoint, engine)
        return {"tokens": 0}
    trained_on = load_metadata(origin.checkpoint).get("dataset")  # none: weights alone, which `load` refuses
    if trained_on not in (None, stream.index.fingerprint):
        raise InputError(
            f"{origin.checkpoint}: was trained on the data set {trained_on[:12]}, data.url="
            f"{stream.index.url} is {stream.index.fingerprint[:12]}; give the same data, or begin a run of "
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
    if not origin.goes_on:
        recorder.event("started", step=step, checkpoint=path, parallel=parallel)
        return None
    layout = before["config"]["parallel"]
    recorder.event("resumed", step=step, checkpoint=path, parallel_before=layout, parallel=parallel)
    return path


def prepare_folder(config: TrainingConfig, folder: RunFolder, stream: TokenStream) -> Origin | None:
    """Open the run folder, put the tokenizers into it, and choose where the weights come from.

    Raises:
        InputError: The folder or a checkpoint cannot be used, or the image tokenizer is not the data set's.
    """
    origin = choose_origin(config.checkpointing, config.model, folder.checkpoints)
    folder.open(config)
    text = TextTokenizer.load(config.data.text_tokenizer)
    image = ImageTokenizer.load(config.data.image_tokenizer)
    expected = stream.index.image.tokenizer_sha256
    if image.sha256 != expected:
        raise InputError(
            f"data.image_tokenizer={config.data.image_tokenizer or 'null (the one that ships)'} has checksum "
            f"{image.sha256[:12]}, the data set was prepared with {expected[:12]}; give that tokenizer"
        )
    try:
        text.save(folder.tokenizers)
        image.save(folder.tokenizers / IMAGE_TOKENIZER_FILE)
    except OSError as error:
        raise InputError(
            f"{folder.tokenizers}: cannot be written ({error.strerror}); set run.dir to a folder you may "
            "write to, or free space"
        ) from error
    return origin


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
            f"{stream.longest_sample} tokens; raise it, or lower data.history or data.chunk"
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
