"""Recompute policies and sequence parallel through the engine: same numbers, weights released."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from pretrain.parallel.mesh import Mesh
from tests.support.engine_case import LEARNING_RATE, Curve, global_batch, parts, settings
from tests.support.ranks import run_ranks

STEPS = 4
MICRO_BATCHES = 2
LARGE = {"heads": 8, "key_value_heads": 4, "swin_norm": True}


def train_each(
    mesh: Mesh, sequence_parallel: bool, models: list[dict[str, Any]]
) -> list[tuple[Curve, list[str]]]:
    """`train` for several networks, one after the other."""
    return [train(mesh, sequence_parallel, model) for model in models]


def train(mesh: Mesh, sequence_parallel: bool, model: dict[str, Any]) -> tuple[Curve, list[str]]:
    """Losses and gradient norms, and the matrices that are still whole after the backward pass."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    groups = ProcessGroups.create(mesh)
    config = settings(mesh, **model)
    config.parallel.sequence_parallel = sequence_parallel
    engine = Engine.build(config, groups)
    whole: list[str] = []
    finish = engine.deepspeed_engine.step

    def recording_step() -> None:
        parameters = engine.module.named_parameters()
        whole.extend(name for name, p in parameters if p.numel() > 0 and "norm" not in name)
        finish()

    engine.deepspeed_engine.step = recording_step
    curve = []
    for step in range(STEPS):
        batches = parts(global_batch(step), mesh, MICRO_BATCHES, groups.data_rank)
        result = engine.step(batches, LEARNING_RATE)
        curve.append((float(result.loss), float(result.gradient_norm)))
    return curve, whole


@pytest.fixture(scope="module")
def baseline() -> dict[str, Curve]:
    """Curves of one rank without recomputation, of both kinds of network."""
    (small, _), (large, _) = run_ranks(train_each, 1, Mesh(1, 1), False, [{}, LARGE])[0]
    return {"7b": small, "34b": large}


CASES = (  # mesh, sequence parallel, network, recompute policy
    (Mesh(1, 2), False, "7b", "none"),
    (Mesh(1, 2), False, "7b", "selective"),
    (Mesh(1, 2), False, "7b", "full"),
    (Mesh(2, 2), True, "7b", "none"),
    (Mesh(2, 2), True, "34b", "selective"),
    (Mesh(2, 2), True, "7b", "full"),
)


@cache
def results_on(mesh: Mesh) -> dict[tuple[bool, str, str], list[tuple[Curve, list[str]]]]:
    """What each rank returns by the rest of a case: one start of the ranks serves all cases of a mesh."""
    cases = [case for case in CASES if case[0] == mesh]
    (sequence_parallel,) = {case[1] for case in cases}
    models = [{**(LARGE if network == "34b" else {}), "recompute": policy} for *_, network, policy in cases]
    of_ranks = run_ranks(train_each, mesh.size, mesh, sequence_parallel, models)
    return {case[1:]: [results[at] for results in of_ranks] for at, case in enumerate(cases)}


@pytest.mark.parametrize(
    ("mesh", "sequence_parallel", "network", "recompute"),
    CASES,
)
def test_training_equals_one_rank_without_recomputation(
    baseline: dict[str, Curve], mesh: Mesh, sequence_parallel: bool, network: str, recompute: str
) -> None:
    results = results_on(mesh)[sequence_parallel, network, recompute]
    assert len(results) == mesh.size
    assert all(curve == results[0][0] for curve, _ in results), "ranks report different numbers"
    np.testing.assert_allclose(np.array(results[0][0]), np.array(baseline[network]), rtol=1e-4, atol=5e-6)
    assert [whole for _, whole in results] == [[]] * mesh.size


def test_dropout_is_the_same_when_recomputed() -> None:
    """Also with sequence parallel, where each rank drops its own tokens."""
    models = [{"dropout": 0.2, "recompute": policy} for policy in ("none", "selective", "full")]
    curves = [curve for curve, _ in run_ranks(train_each, 2, Mesh(2, 1), True, models)[0]]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-5)
