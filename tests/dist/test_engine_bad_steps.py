"""Skipped updates: nothing changes on any rank, and the training continues as if they had not happened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config import OptimizerName
from pretrain.parallel.mesh import Mesh
from tests.support.engine_case import LEARNING_RATE, Curve, global_batch, parts, settings
from tests.support.ranks import run_ranks

GOOD_STEPS = 4


def weights_and_states(engine: Any) -> list[Tensor]:
    """Copies of the state of this rank: working weights, masters, moments and counts."""
    from pretrain.checkpoint.fragments import fragments

    held = [getattr(p, "ds_tensor", p).detach().clone() for p in engine.module.parameters()]
    for fragment in fragments(engine):
        held += [values.detach().clone() for values in fragment.states.values()]
    return held + [state["step"].clone() for state in engine.optimizer.state.values() if "step" in state]


def run_both(
    mesh: Mesh, stage: int, precision: str, optimizer: OptimizerName
) -> tuple[tuple[Curve, list[str]], tuple[Curve, list[str]]]:
    """`run` undisturbed and disturbed."""
    from pretrain.parallel.groups import ProcessGroups

    groups = ProcessGroups.create(mesh)
    undisturbed = run(groups, stage, precision, optimizer, False)
    return undisturbed, run(groups, stage, precision, optimizer, True)


def run(
    groups: Any, stage: int, precision: str, optimizer: OptimizerName, disturbed: bool
) -> tuple[Curve, list[str]]:
    """Losses and norms of the good steps, and the problems found with the bad steps between them."""
    from pretrain.parallel.engine import Engine

    mesh = groups.mesh
    config = settings(mesh, stage, precision)
    config.optim.name = optimizer
    config.trainer.micro_batch = 1  # two of them at two data-parallel ranks: added up in fp32
    engine = Engine.build(config, groups)
    curve, wrong = [], []
    for number in range(GOOD_STEPS):
        batches = parts(global_batch(number), mesh, 4 // mesh.data, groups.data_rank)
        result = engine.step(batches, LEARNING_RATE)
        curve.append((float(result.loss), float(result.gradient_norm)))
        if bool(result.skipped):
            wrong.append(f"step {number} is skipped")
        if disturbed and number == 1:
            wrong += bad_steps(engine, batches, groups)
    if engine.step_count != GOOD_STEPS + 4 * disturbed:
        wrong.append(f"{engine.step_count} steps counted")
    return curve, wrong


def bad_steps(engine: Any, batches: Any, groups: Any) -> list[str]:
    """Four bad steps in a row."""
    seen: list[tuple[float, float]] = []

    def judge(loss: Tensor, norm: Tensor) -> Tensor:
        seen.append((float(loss), float(norm)))
        return torch.tensor(groups.rank == groups.mesh.size - 1)  # one rank decides for all

    def unmoved(loss: Tensor, norm: Tensor) -> Tensor:
        seen.append((float(loss), float(norm)))
        return torch.tensor(False)

    def poisoned(loss_too: bool) -> Any:
        def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
            loss, sums = whole(*inputs)
            alone = loss + (loss - loss.detach()) * 1e30 * 1e30  # the same loss, an infinite gradient
            bad = loss * torch.nan if loss_too else alone
            return (bad if groups.data_rank == groups.mesh.data - 1 else loss), sums

        return forward

    before, whole, wrong = weights_and_states(engine), engine._forward, []
    cases = [
        ("judged", judge, whole, True),
        ("loss", None, poisoned(loss_too=True), False),
        ("gradient", unmoved, poisoned(loss_too=False), False),
        ("judged again", judge, whole, True),
    ]
    for name, by, forward, finite in cases:
        engine._forward = forward
        result = engine.step(batches, LEARNING_RATE, by)
        engine._forward = whole
        if not bool(result.skipped):
            wrong.append(f"{name}: not skipped")
        if bool(result.gradient_norm.isfinite()) != finite:
            wrong.append(f"{name}: norm {float(result.gradient_norm)}")
        after = weights_and_states(engine)
        if not all(torch.equal(old, new) for old, new in zip(before, after, strict=True)):
            wrong.append(f"{name}: something has changed")
        if by is not None and seen[-1] != (float(result.loss), float(result.gradient_norm)):
            wrong.append(f"{name}: judged {seen[-1]}")
    if len(seen) != 3:
        wrong.append(f"{len(seen)} judgements")
    return wrong


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("mesh", "stage"), [(Mesh(2, 2), 0), (Mesh(2, 2), 1), (Mesh(2, 2), 2), (Mesh(2, 2), 3), (Mesh(1, 1), 3)]
)
def test_bad_steps_change_nothing(mesh: Mesh, stage: int, precision: str) -> None:
    check(mesh, stage, precision, "adamw")


@pytest.mark.parametrize(
    ("mesh", "stage", "precision"),
    [
        (Mesh(2, 2), 0, "bf16"),
        (Mesh(1, 2), 1, "fp32"),
        (Mesh(2, 2), 1, "bf16"),
        (Mesh(1, 2), 3, "bf16"),
        (Mesh(2, 2), 3, "fp32"),
    ],
)
def test_bad_steps_change_nothing_with_lion(mesh: Mesh, stage: int, precision: str) -> None:
    check(mesh, stage, precision, "lion")


def check(mesh: Mesh, stage: int, precision: str, optimizer: OptimizerName) -> None:
    of_ranks = run_ranks(run_both, mesh.size, mesh, stage, precision, optimizer)
    undisturbed, disturbed = ([pair[which] for pair in of_ranks] for which in (0, 1))
    assert [wrong for _, wrong in disturbed] == [[]] * mesh.size
    assert disturbed == undisturbed
    assert len(set(undisturbed[0][0])) == GOOD_STEPS
