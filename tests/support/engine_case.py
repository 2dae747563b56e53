"""A small model, its batches and its training, in one process and partitioned (for the engine's tests)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from data.contracts import PackedBatch
from data.tokens.vocabulary import IGNORED_LABEL
from pretrain.config import (
    LossConfig,
    OptimConfig,
    ParallelConfig,
    Precision,
    TrainerConfig,
    TrainingConfig,
    ZeroStage,
)
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer, initialise
from pretrain.optim import parameter_groups
from pretrain.parallel.mesh import Mesh

STEPS = 10
BATCH, LENGTH, VOCABULARY = 4, 32, 512
LEARNING_RATE = 1e-3
CHUNK = 2
ACTION_PLACES = ((1, 5), (2, 4), (2, 25), (3, 28))
"""Row and column after the prompts of action samples; the first sequence has none."""

Curve = list[tuple[float, float]]


def settings(mesh: Mesh, stage: int = 3, precision: str = "fp32", **model: object) -> TrainingConfig:
    return TrainingConfig(
        trainer=TrainerConfig(global_batch=BATCH, precision=cast(Precision, precision)),
        parallel=ParallelConfig(mesh.tensor, mesh.data, cast(ZeroStage, stage)),
        model=ModelConfig(
            **{
                "vocabulary_size": VOCABULARY,
                "hidden_size": 64,
                "ffn_size": 96,
                "layers": 2,
                "heads": 4,
                "dropout": 0.0,
                "max_positions": LENGTH,
                **model,
            }
        ),
        optim=OptimConfig(lr=LEARNING_RATE, gradient_clipping=0.5),
    )


def rows(batch: PackedBatch, start: int, end: int) -> PackedBatch:
    return batch.rows(start, end)


def global_batch(step: int) -> PackedBatch:
    """Random tokens; the sequences have different numbers of labels, so that a mean of means would differ."""
    random = np.random.default_rng(step % 5)
    tokens = random.integers(0, VOCABULARY, (BATCH, LENGTH + 1)).astype(np.int32)
    labels = tokens[:, 1:].copy()
    for row in range(BATCH):
        labels[row, : 5 * row] = IGNORED_LABEL
    segments = np.ones((BATCH, LENGTH), np.int32)
    segments[:, LENGTH // 2 :] = 2
    positions = np.tile(np.arange(LENGTH // 2, dtype=np.int32), (BATCH, 2))
    blocks = np.zeros((BATCH, LENGTH), np.int32)
    blocks[:, 4:8], blocks[:, 8:12] = 1, 2
    targets = random.uniform(-1, 1, (len(ACTION_PLACES), CHUNK, 7)).astype(np.float32)
    places = np.array([row * LENGTH + column for row, column in ACTION_PLACES])
    present = np.ones(targets.shape, bool)
    return PackedBatch(tokens[:, :-1].copy(), labels, positions, segments, blocks, places, targets, present)


def train_partitioned(config: TrainingConfig, micro_batches: int = 1) -> Curve:
    """Every rank: losses and gradient norms of the engine."""
    return train_each([(config, micro_batches)])[0]


def train_each(trainings: Sequence[tuple[TrainingConfig, int]]) -> list[Curve]:
    """Every rank: curves of several trainings of one layout of ranks, one after the other.

    Args:
        trainings: Settings and number of micro-batches of each.
    """
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    parallel = trainings[0][0].parallel
    mesh = Mesh(parallel.tensor, parallel.data)
    groups = ProcessGroups.create(mesh)
    curves: list[Curve] = []
    for config, micro_batches in trainings:
        engine = Engine.build(config, groups)
        curve: Curve = []
        for step in range(STEPS):
            batches = parts(global_batch(step), mesh, micro_batches, groups.data_rank)
            result = engine.step(batches, LEARNING_RATE)
            curve.append((float(result.loss), float(result.gradient_norm)))
        curves.append(curve)
    return curves


def parts(batch: PackedBatch, mesh: Mesh, micro_batches: int, data_rank: int) -> list[PackedBatch]:
    """The micro-batches of one data-parallel rank."""
    size = BATCH // mesh.data // micro_batches
    first = data_rank * micro_batches
    return [rows(batch, i * size, (i + 1) * size) for i in range(first, first + micro_batches)]


def train_plain(
    loss_of: Callable[[Transformer, PackedBatch], Tensor],
    decay_all: bool = False,
    build: Callable[[list[dict[str, Any]], OptimConfig], torch.optim.Optimizer] | None = None,
    **model_settings: Any,
) -> Curve:
    """Losses and gradient norms of one ordinary process with torch alone.

    Args:
        loss_of: Loss of a global batch.
        decay_all: Decay norms and biases too.
        build: Makes the optimiser of parameter groups; None: torch's AdamW.
        model_settings: Of the model, beside those of `settings`.
    """
    config = settings(Mesh(1, 1), **model_settings)
    model = Transformer(config.model)
    initialise(model, config.trainer.seed)
    groups = parameter_groups(model.named_parameters(), config.optim.weight_decay, decay_all)
    optimizer = (build or _adamw)(groups, config.optim)
    curve = []
    for step in range(STEPS):
        loss = loss_of(model, global_batch(step))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        curve.append((loss.item(), norm.item()))
    return curve


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def logits_and_labels(model: Transformer, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and labels [N] of the labelled positions."""
    tokens, positions = (torch.as_tensor(a).long() for a in (batch.tokens, batch.positions))
    mask = packed_mask(batch.segments, batch.blocks, model.config, tokens.device)
    labels = torch.as_tensor(batch.labels).long().flatten()
    labelled = labels != IGNORED_LABEL
    return model(tokens, positions, mask).flatten(0, 1)[labelled], labels[labelled]


def token_loss(model: Transformer, batch: PackedBatch) -> Tensor:
    """The default loss of the tokens of a whole global batch, written out."""
    loss = LossConfig()
    logits, labels = logits_and_labels(model, batch)
    weights = torch.where(labels >= 4, loss.image_weight, 1.0)  # ids from 4 on are image codes here
    entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    squares = logits.logsumexp(1).square().mean()
    return (weights * entropy).sum() / weights.sum() + loss.z_loss * squares
