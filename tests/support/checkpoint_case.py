"""A tiny network on synthetic sequences, trained, saved and resumed at any layout (for checkpoint tests)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from data.contracts import PackedBatch
from data.tokens.vocabulary import IGNORED_LABEL
from pretrain.checkpoint.load import load, load_metadata
from pretrain.checkpoint.location import CheckpointLocation, step_folder
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.config import OptimConfig, ParallelConfig, Precision, TrainerConfig, TrainingConfig, ZeroStage
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.mesh import Mesh

Layout = tuple[int, int, int]  # tensor, data, ZeRO stage
SEQUENCES, LENGTH, VOCABULARY = 4, 24, 264
LEARNING_RATE = 0.01
CHUNK, PROMPT = 2, 5  # each sequence but the first is an action sample for the head


def config(
    layout: Layout, precision: str = "fp32", dropout: float = 0.0, head: bool = True
) -> TrainingConfig:
    tensor, data, stage = layout
    return TrainingConfig(
        trainer=TrainerConfig(
            global_batch=SEQUENCES, sequence_length=LENGTH, precision=cast(Precision, precision), seed=3
        ),
        parallel=ParallelConfig(tensor=tensor, data=data, zero_stage=cast(ZeroStage, stage)),
        model=ModelConfig(
            vocabulary_size=VOCABULARY,
            hidden_size=32,
            ffn_size=44,
            layers=2,
            heads=4,
            max_positions=LENGTH,
            dropout=dropout,
            action_head=ActionHeadConfig(time_horizon=CHUNK, dropout=dropout) if head else None,
        ),
        optim=OptimConfig(lr=LEARNING_RATE, weight_decay=0.1, gradient_clipping=0.5),
    )


def batch(step: int, data_rank: int, data_size: int) -> PackedBatch:
    """This rank's sequences of a repeating pattern; the global batch is the same for any number of ranks."""
    generator = np.random.default_rng(step)
    tokens = generator.integers(0, VOCABULARY, (SEQUENCES, LENGTH), dtype=np.int32)
    tokens[:, 1::2] = (tokens[:, ::2] * 7 + 5) % VOCABULARY
    labels = np.roll(tokens, -1, axis=1)
    labels[:, 1::2] = IGNORED_LABEL
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (SEQUENCES, 1))
    per_rank = SEQUENCES // data_size
    rows = slice(data_rank * per_rank, (data_rank + 1) * per_rank)
    ones, zeros = np.ones_like(tokens), np.zeros_like(tokens)
    starts = np.arange(1, SEQUENCES) * LENGTH + PROMPT
    targets = generator.uniform(-1, 1, (SEQUENCES - 1, CHUNK, 7)).astype(np.float32)
    present = np.ones(targets.shape, bool)
    whole = PackedBatch(tokens, labels, positions, ones, zeros, starts, targets, present)
    return whole.rows(rows.start, rows.stop)


def latest(root: Path) -> Path | None:
    """The newest committed checkpoint below a folder."""
    step = CheckpointLocation(root).latest()
    return None if step is None else step_folder(root, step)


def file(checkpoint: Path, writer: int, kind: str = "") -> Path:
    """The file that a rank wrote: weights, or with `kind=".optimizer"` moments."""
    (path,) = checkpoint.glob(f"rank_{writer:05d}{kind}-*.safetensors")
    return path


def metadata(checkpoint: Path) -> Mapping[str, Any]:
    """What was stored beside the tensors."""
    return load_metadata(checkpoint)


def build(settings: TrainingConfig) -> Engine:
    mesh = Mesh(settings.parallel.tensor, settings.parallel.data)
    return Engine.build(settings, ProcessGroups.create(mesh))


def steps(engine: Engine, last: int) -> list[float]:
    """Train to step `last`, inclusive; return the losses."""
    groups = engine.groups
    losses: list[float] = []
    while engine.step_count < last:
        micro_batch = batch(engine.step_count, groups.data_rank, groups.mesh.data)
        losses.append(float(engine.step([micro_batch], LEARNING_RATE).loss))
        assert math.isfinite(losses[-1])
    return losses


def train_and_save(settings: TrainingConfig, root: Path, save_at: list[int], last: int) -> list[float]:
    """Train from random weights, saving at some steps in the background; return the losses of all steps."""
    engine = build(settings)
    writer = CheckpointWriter(root, engine)
    losses: list[float] = []
    for step in save_at:
        losses += steps(engine, step)
        writer.save(step, {"rank": int(os.environ["RANK"]), "tokens": 10 * step})
    losses += steps(engine, last)
    writer.wait()
    return losses


def resume(settings: TrainingConfig, checkpoint: Path, last: int) -> list[float]:
    """Load into a fresh engine and train to step `last`; return the losses."""
    return resume_each(settings, {"only": checkpoint}, last)["only"]


def resume_each(
    settings: TrainingConfig, checkpoints: Mapping[str, Path], last: int, root: Path | None = None
) -> dict[str, list[float]]:
    """Load each checkpoint into the same engine and train on from it; return the losses by its name.

    With `root` each is saved again as soon as it is loaded, in a folder of its name there.
    """
    engine = build(settings)
    losses: dict[str, list[float]] = {}
    for name, checkpoint in checkpoints.items():
        metadata = load(checkpoint, engine)
        assert metadata == {"rank": 0, "tokens": 10 * engine.step_count}
        if root is not None:
            writer = CheckpointWriter(root / name, engine)
            writer.save(engine.step_count, metadata)
            writer.wait()
        losses[name] = steps(engine, last)
    return losses
