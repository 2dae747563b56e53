"""What a rank holds of the optimiser's state, in every way that an engine can keep it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.model.transformer import expected_shapes
from pretrain.parallel.mesh import Mesh
from tests.support.engine_case import LEARNING_RATE, Curve, global_batch, parts, settings
from tests.support.ranks import run_ranks

STEPS = 4
Kept = dict[str, Any]  # settings of `parallel` and `trainer` by name


def build(mesh: Mesh, stage: int, kept: Kept) -> Any:
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    config = settings(mesh, stage, kept.get("precision", "fp32"))
    config.trainer.micro_batch = kept.get("micro_batch")
    config.parallel.offload = kept.get("offload", "none")
    config.parallel.hpz_partition_size = kept.get("hpz", 1)
    return Engine.build(config, ProcessGroups.create(mesh))


def train(engine: Any, first: int, last: int, micro_batches: int = 1) -> Curve:
    curve = []
    for step in range(first, last):
        batches = parts(global_batch(step), engine.groups.mesh, micro_batches, engine.groups.data_rank)
        result = engine.step(batches, LEARNING_RATE)
        curve.append((float(result.loss), float(result.gradient_norm)))
    return curve


def forget_and_remember(mesh: Mesh, stage: int, kept: Kept) -> tuple[Curve, Curve, dict[str, int]]:
    """A training whose state is spoilt and put back half way, an undisturbed one, and what is written."""
    from pretrain.checkpoint.fragments import finish_loading, fragments, optimizer_step, state_names

    micro_batches = kept.get("micro_batches", 1)
    engine = build(mesh, stage, kept)
    disturbed = train(engine, 0, 2, micro_batches)
    count = optimizer_step(engine)
    assert count == 2
    held = list(fragments(engine))
    copies = [{key: values.clone() for key, values in part.states.items()} for part in held]
    assert all(set(copy) == set(state_names(engine)) for copy in copies)
    train(engine, 2, 4, micro_batches)
    for part, copy in zip(fragments(engine), copies, strict=True):
        for key, values in copy.items():
            part.states[key].copy_(values)
    finish_loading(engine, count)
    disturbed += train(engine, 2, STEPS, micro_batches)
    written: dict[str, int] = {}
    for part in held:
        if part.is_writer:
            written[part.name] = sum(box.size for box in part.boxes)
    return disturbed, train(build(mesh, stage, kept), 0, STEPS, micro_batches), written


@pytest.mark.parametrize(
    ("mesh", "stage", "kept"),
    [
        (Mesh(2, 2), 0, {}),
        (Mesh(1, 2), 0, {"precision": "bf16"}),
        (Mesh(2, 2), 1, {"precision": "bf16", "micro_batch": 1, "micro_batches": 2}),
        (Mesh(2, 2), 2, {"precision": "bf16"}),
        (Mesh(2, 2), 3, {"precision": "bf16"}),
        (Mesh(1, 2), 1, {"offload": "optimizer"}),
        (Mesh(2, 2), 2, {"offload": "optimizer", "precision": "bf16"}),
        (Mesh(2, 2), 3, {"offload": "optimizer"}),
        (Mesh(1, 2), 3, {"offload": "all"}),
    ],
)
def test_state_that_is_put_back_is_trained_on(mesh: Mesh, stage: int, kept: Kept) -> None:
    ranks = run_ranks(forget_and_remember, mesh.size, mesh, stage, kept)
    for disturbed, undisturbed, _ in ranks:
        assert disturbed == undisturbed
    assert len(set(ranks[0][0])) == STEPS
    for name, shape in expected_shapes(settings(mesh).model).items():
        found = sum(written.get(name, 0) for _, _, written in ranks)
        assert found == torch.Size(shape).numel(), name


def curve_of(mesh: Mesh, stage: int, kept: Kept) -> Curve:
    return train(build(mesh, stage, kept), 0, STEPS, kept.get("micro_batches", 1))


@pytest.mark.parametrize(
    ("mesh", "stage", "kept"),
    [
        (Mesh(1, 2), 1, {"offload": "optimizer", "micro_batches": 2, "micro_batch": 1}),
        (Mesh(2, 2), 2, {"offload": "optimizer", "micro_batches": 2, "micro_batch": 1}),
        (Mesh(2, 2), 3, {"offload": "all", "micro_batches": 2, "micro_batch": 1}),
        (Mesh(1, 4), 3, {"hpz": 2}),
    ],
)
def test_where_state_lies_changes_no_loss(mesh: Mesh, stage: int, kept: Kept) -> None:
    found = run_ranks(curve_of, mesh.size, mesh, stage, kept)[0]
    plain = run_ranks(curve_of, mesh.size, mesh, stage, {**kept, "offload": "none", "hpz": 1})[0]
    for (loss, norm), (expected, expected_norm) in zip(found, plain, strict=True):
        assert loss == pytest.approx(expected, abs=5e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-4)
