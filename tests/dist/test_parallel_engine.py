"""The partitioned engine against one plain process: same losses, same gradient norms."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from data.contracts import PackedBatch
from data.errors import InputError
from data.tokens.vocabulary import IGNORED_LABEL
from pretrain.config import OptimConfig, ParallelConfig, TrainerConfig, TrainingConfig
from pretrain.model.config import ModelConfig
from pretrain.model.loss import LossSettings, label_weights
from pretrain.model.attention.choose import packed_mask
from pretrain.model.transformer import Transformer, initialise
from pretrain.optim import parameter_groups
from pretrain.parallel.engine import check_batch
from pretrain.parallel.mesh import Mesh
from tests.dist.harness import RankFailedError, run_ranks

STEPS = 10
BATCH, LENGTH, VOCABULARY = 4, 32, 512
LEARNING_RATE = 1e-3


def settings(mesh: Mesh, stage: int = 3, precision: str = "fp32", **model: object) -> TrainingConfig:
    return TrainingConfig(
        trainer=TrainerConfig(global_batch=BATCH, precision=precision),
        parallel=ParallelConfig(mesh.tensor, mesh.data, stage),
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
    return PackedBatch(*(getattr(batch, field.name)[start:end] for field in fields(batch)))


def global_batch(step: int) -> PackedBatch:
    """Random tokens; the sequences have different numbers of labels, so a mean of means would differ."""
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
    return PackedBatch(tokens[:, :-1].copy(), labels, positions, segments, blocks)


def train_partitioned(
    mesh: Mesh, stage: int, micro_batches: int, model: dict[str, object], precision: str = "fp32"
) -> list[tuple[float, float]]:
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    groups = ProcessGroups.create(mesh)
    engine = Engine.build(settings(mesh, stage, precision, **model), groups)
    share = BATCH // mesh.data
    curve = []
    for step in range(STEPS):
        first = groups.data_rank * share
        mine = rows(global_batch(step), first, first + share)
        size = share // micro_batches
        parts = [rows(mine, i * size, (i + 1) * size) for i in range(micro_batches)]
        result = engine.step(parts, LEARNING_RATE)
        curve.append((float(result.loss), float(result.gradient_norm)))
    return curve


@pytest.fixture(scope="module")
def plain_curve() -> list[tuple[float, float]]:
    """Loss and gradient norm of one ordinary process with torch alone."""
    config = settings(Mesh(1, 1))
    model = Transformer(config.model)
    initialise(model, config.trainer.seed)
    groups = parameter_groups(model.named_parameters(), config.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=config.optim.betas, eps=config.optim.eps)
    curve = []
    for step in range(STEPS):
        batch = global_batch(step)
        tokens, positions = (torch.as_tensor(a).long() for a in (batch.tokens, batch.positions))
        mask = packed_mask(batch.segments, batch.blocks, config.model, tokens.device)
        flat = torch.as_tensor(batch.labels).long().flatten()
        labelled = (flat != IGNORED_LABEL).nonzero().squeeze(1)
        labels, weights = flat[labelled], LossSettings(config.loss.image_weight, config.loss.z_loss)
        normaliser = torch.stack([label_weights(labels, weights).sum(), torch.tensor(float(len(labels)))])
        loss, _ = model(tokens, positions, mask, labelled, labels, normaliser, weights)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        curve.append((loss.item(), norm.item()))
    return curve


@pytest.mark.parametrize(
    ("tensor", "data", "stage", "micro_batches"),
    [
        (2, 2, 3, 1),
        (2, 2, 3, 2),
        (1, 2, 3, 2),
        (1, 4, 3, 1),
        (4, 1, 3, 4),
        (2, 2, 1, 1),
        (2, 2, 2, 2),
        (1, 1, 3, 1),
    ],
)
def test_every_layout_equals_one_plain_process(
    plain_curve: list[tuple[float, float]], tensor: int, data: int, stage: int, micro_batches: int
) -> None:
    mesh = Mesh(tensor, data)
    curves = run_ranks(train_partitioned, mesh.size, mesh, stage, micro_batches, {})
    assert all(curve == curves[0] for curve in curves), "ranks report different numbers"
    found, expected = np.array(curves[0]), np.array(plain_curve)

    assert np.abs(found[:, 0] - expected[:, 0]).max() < 5e-6
    assert (np.abs(found[:, 1] - expected[:, 1]) / expected[:, 1]).max() < 1e-4
    assert expected[-1, 0] < expected[0, 0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_stays_near_fp32(plain_curve: list[tuple[float, float]], stage: int) -> None:
    curves = run_ranks(train_partitioned, 4, Mesh(2, 2), stage, 2, {}, "bf16")
    found, expected = np.array(curves[0]), np.array(plain_curve)
    assert np.abs(found[:, 0] - expected[:, 0]).max() < 5e-3
    assert (np.abs(found[:, 1] - expected[:, 1]) / expected[:, 1]).max() < 0.03
    assert np.abs(found[:, 0] - expected[:, 0]).max() > 1e-6, "not in bf16 at all"


def test_stage_3_holds_no_whole_matrix() -> None:
    for kept in run_ranks(kept_elements, 2):
        assert kept == {"norm": True, "matrix": False}


def kept_elements() -> dict[str, bool]:
    """Whether norms and whether matrices are whole on this rank between steps."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    groups = ProcessGroups.create(Mesh(1, 2))
    engine = Engine.build(settings(groups.mesh), groups)
    engine.step([rows(global_batch(0), 2 * groups.data_rank, 2 * groups.data_rank + 2)], LEARNING_RATE)
    kept: dict[str, set[bool]] = {"norm": set(), "matrix": set()}
    for name, parameter in engine.module.named_parameters():
        kept["norm" if "norm" in name else "matrix"].add(parameter.numel() > 0)
    return {kind: whole == {True} for kind, whole in kept.items() if len(whole) == 1}


def test_unknown_tokens_and_long_samples_are_refused() -> None:
    batch, model = global_batch(0), settings(Mesh(1, 1)).model
    check_batch(batch, model)
    batch.positions[0, -1] = LENGTH
    with pytest.raises(InputError, match=f"a sample of {LENGTH + 1} tokens, but"):
        check_batch(batch, model)
    batch.tokens[0, 0] = VOCABULARY
    with pytest.raises(InputError, match=f"token id {VOCABULARY} in the data"):
        check_batch(batch, model)


def test_recomputation_and_dropout_are_repeatable() -> None:
    mesh = Mesh(2, 2)
    model = {"dropout": 0.1}
    first = run_ranks(train_partitioned, 4, mesh, 3, 1, model)[0]
    again = run_ranks(train_partitioned, 4, mesh, 3, 1, model)[0]
    recomputed = run_ranks(train_partitioned, 4, mesh, 3, 1, {**model, "recompute": "full"})[0]
    assert first == again
    np.testing.assert_allclose(np.array(recomputed), np.array(first), rtol=1e-5)


def test_wrong_world_size_and_indivisible_sizes_are_refused() -> None:
    with pytest.raises(RankFailedError, match="1 processes run, but"):
        run_ranks(train_partitioned, 1, Mesh(1, 2), 3, 1, {})
    with pytest.raises(RankFailedError, match=r"model\.heads=6 does not divide by parallel\.tensor=4"):
        run_ranks(train_partitioned, 4, Mesh(4, 1), 3, 1, {"heads": 6, "hidden_size": 96})


def test_mesh_places_tensor_parallel_peers_side_by_side() -> None:
    mesh = Mesh(tensor=2, data=3)
    assert mesh.tensor_groups() == [[0, 1], [2, 3], [4, 5]]
    assert mesh.data_groups() == [[0, 2, 4], [1, 3, 5]]
    assert [(mesh.data_rank(r), mesh.tensor_rank(r)) for r in range(3)] == [(0, 0), (0, 1), (1, 0)]
    with pytest.raises(InputError, match="4 processes run"):
        mesh.check_world(4)


def test_harness_names_the_rank_that_failed() -> None:
    with pytest.raises(RankFailedError, match="rank 1 failed"):
        run_ranks(_fails_on_one, 2)


def _fails_on_one() -> None:
    import os

    if os.environ["RANK"] == "1":
        raise ValueError("no")
