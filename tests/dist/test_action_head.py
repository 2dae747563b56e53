"""The action head in every layout against one plain process, and its weights on tensor-parallel ranks."""

from __future__ import annotations

import hashlib
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.contracts import PackedBatch
from pretrain.config import OptimConfig, TrainingConfig
from pretrain.model.config import ActionHeadConfig
from pretrain.model.loss import LabelKind, Total
from pretrain.model.transformer import Transformer, initialise
from pretrain.parallel.mesh import Mesh
from tests.support.engine_case import (
    ACTION_PLACES,
    CHUNK,
    LEARNING_RATE,
    STEPS,
    Curve,
    global_batch,
    parts,
    settings,
    token_loss,
    train_plain,
)
from tests.support.plain_action_head import plain_error
from tests.support.ranks import run_ranks

Result = tuple[Curve, list[float], str, dict[str, float | None]]
Case = tuple[int, bool, float]  # ZeRO stage, sequence parallel, dropout of the head
LAYOUTS: dict[Mesh, tuple[Case, ...]] = {
    Mesh(1, 2): ((1, False, 0.0), (3, False, 0.0)),
    Mesh(2, 1): ((1, False, 0.0), (3, False, 0.0), (1, True, 0.0), (1, True, 0.3)),
    Mesh(2, 2): ((0, False, 0.0), (3, False, 0.0)),
}

WEIGHT = 1.0  # of the head's error, so that loss and tolerance are of the size of the other tests'
# The bias of attention's keys has no gradient but rounding: at AdamW's default of 1e-8 that becomes whole
# steps, and the plain training in fp32 leaves its own curve in fp64 by 2e-3 in ten steps (at 1e-5 by 1e-6).
EPSILON = 1e-5


def config_of(mesh: Mesh, case: Case) -> TrainingConfig:
    stage, shared, dropout = case
    head = ActionHeadConfig(time_horizon=CHUNK, dropout=dropout)
    config = settings(mesh, stage, action_head=head)
    config.parallel.sequence_parallel = shared
    config.trainer.micro_batch, config.loss.action_l1, config.optim.eps = 1, WEIGHT, EPSILON
    return config


def train(mesh: Mesh, cases: tuple[Case, ...]) -> list[Result]:
    """Every rank, by case.

    Curve, summed errors of the head, checksum of its share of the head's weights, norms of the first step.

    A micro-batch is one sequence, and the first sequence has no action sample.
    """
    from pretrain.checkpoint.fragments import fragments
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.telemetry.norms import GroupNorms

    groups = ProcessGroups.create(mesh)
    results = []
    for case in cases:
        engine = Engine.build(config_of(mesh, case), groups)
        curve, errors, measured = [], [], {}
        norms = GroupNorms(engine)
        for step in range(STEPS):
            batches = parts(global_batch(step), mesh, 4 // mesh.data, groups.data_rank)
            if step == 0:
                norms.request()
            result = engine.step(batches, LEARNING_RATE)
            if step == 0:
                measured = norms.read()
            curve.append((float(result.loss), float(result.gradient_norm)))
            row = result.sums[LabelKind.CONTINUOUS]
            assert float(row[Total.LABELS]) == len(ACTION_PLACES) * CHUNK * 7
            errors.append(float(row[Total.ACTION_L1]))
        digest = hashlib.sha256()
        for fragment in fragments(engine):
            if fragment.name.startswith("action_head."):
                digest.update(fragment.states["master"].numpy(force=True).tobytes())
        norms.close()
        results.append((curve, errors, digest.hexdigest(), measured))
    return results


@cache
def results_of(mesh: Mesh) -> list[list[Result]]:
    """By rank what each case gives: one start of the ranks serves them all."""
    return run_ranks(train, mesh.size, mesh, LAYOUTS[mesh])


@pytest.fixture(scope="module")
def plain_curve() -> Curve:
    """The same training with torch alone; the head sample by sample."""

    def loss_of(model: Transformer, batch: PackedBatch) -> Tensor:
        return token_loss(model, batch) + WEIGHT * plain_error(model, batch)

    head = ActionHeadConfig(time_horizon=CHUNK, dropout=0.0)
    return train_plain(loss_of, build=adamw, action_head=head)


def adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=EPSILON)


@pytest.mark.parametrize("mesh", LAYOUTS, ids=str)
def test_every_layout_equals_one_plain_process(plain_curve: Curve, mesh: Mesh) -> None:
    of_ranks, expected = results_of(mesh), np.array(plain_curve)
    assert expected[-1, 0] < expected[0, 0]
    for at, case in enumerate(LAYOUTS[mesh]):
        curves = [cases[at][0] for cases in of_ranks]
        assert all(curve == curves[0] for curve in curves), "ranks report different numbers"
        if case[2]:
            continue
        actual = np.array(curves[0])
        assert np.abs(actual[:, 0] - expected[:, 0]).max() < 5e-6, case
        assert (np.abs(actual[:, 1] - expected[:, 1]) / expected[:, 1]).max() < 1e-4, case


def test_tensor_parallel_ranks_keep_the_same_head_whatever_they_drop() -> None:
    """With sequence parallelism the ranks' own tokens have different dropout, the head's must not."""
    first, second = results_of(Mesh(2, 1))
    for at, case in enumerate(LAYOUTS[Mesh(2, 1)]):
        assert first[at][2] == second[at][2], case
    shared, dropped = first[2], first[3]
    assert shared[1] != dropped[1]
    assert all(error > 0 for error in dropped[1])


@pytest.mark.parametrize("mesh", LAYOUTS, ids=str)
def test_its_gradient_has_a_norm_of_its_own_that_counts_once(mesh: Mesh) -> None:
    config = config_of(Mesh(1, 1), (1, False, 0.0))
    model = Transformer(config.model)
    initialise(model, config.trainer.seed)
    (WEIGHT * plain_error(model, global_batch(0))).backward()
    assert model.action_head is not None
    expected = torch.nn.utils.get_total_norm(
        [p.grad for p in model.action_head.parameters() if p.grad is not None]
    )
    for cases in results_of(mesh):
        for at, case in enumerate(LAYOUTS[mesh]):
            norms, whole = cases[at][3], cases[at][0][0][1]
            if not case[2]:
                assert norms["gradient_norm/action_head"] == pytest.approx(float(expected), rel=1e-4), case
            parts_of = [
                value or math.nan for name, value in norms.items() if name.startswith("gradient_norm/")
            ]
            assert math.hypot(*parts_of) == pytest.approx(whole, rel=1e-4), case
