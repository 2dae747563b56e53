"""Norms of gradients and weights by group against one plain process, at every ZeRO stage and layout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from pretrain.config import OptimConfig
from pretrain.model.config import ActionHeadConfig
from pretrain.model.transformer import Transformer, expected_shapes, initialise
from pretrain.optim import parameter_groups
from pretrain.parallel.mesh import Mesh
from pretrain.telemetry.norms import GROUPS, group_of
from tests.support.engine_case import LEARNING_RATE, global_batch, logits_and_labels, parts, settings
from tests.support.ranks import run_ranks

WITHOUT_HEAD = [
    group for group in GROUPS if group != "action_head"
]  # that one: tests/dist/test_action_head.py
STEPS = 4
STAGES = (0, 1, 2, 3)
MEASURED = (0, 2, 3)
CLIPPED, UNCLIPPED = 0.5, 0.0

Norms = dict[str, float | None]
Measured = tuple[list[Norms], list[float], list[list[float]]]


def partitioned(
    mesh: Mesh, stages: Sequence[int], clipping: float, precision: str, micro_batches: int
) -> list[Measured]:
    """By stage: norms by group of the measured steps, their global norms, and [loss, norm] of every step."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.telemetry.norms import GroupNorms

    groups, measured = ProcessGroups.create(mesh), []
    for stage in stages:
        config = settings(mesh, stage, precision)
        config.optim.gradient_clipping = clipping
        if micro_batches > 1:
            config.trainer.micro_batch = 4 // mesh.data // micro_batches
        engine = Engine.build(config, groups)
        norms = GroupNorms(engine)
        found, whole, curve = [], [], []
        for step in range(STEPS):
            if step in MEASURED:
                norms.request()
            batches = parts(global_batch(step), mesh, micro_batches, groups.data_rank)
            result = engine.step(batches, LEARNING_RATE)
            if step in MEASURED:
                found.append(norms.read())
                whole.append(float(result.gradient_norm))
            curve.append([float(result.loss), float(result.gradient_norm)])
        measured.append((found, whole, curve))
    return measured


@cache
def partitioned_at_each_stage(
    mesh: Mesh, clipping: float, precision: str, micro_batches: int
) -> list[list[Measured]]:
    """By stage what each rank measures: one start of the ranks serves all stages."""
    of_ranks = run_ranks(partitioned, mesh.size, mesh, STAGES, clipping, precision, micro_batches)
    return [[stages[at] for stages in of_ranks] for at in range(len(STAGES))]


def plain() -> list[Norms]:
    """The same training with torch alone."""
    config = settings(Mesh(1, 1))
    model = Transformer(config.model)
    initialise(model, config.trainer.seed)
    groups = parameter_groups(model.named_parameters(), config.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=config.optim.betas, eps=config.optim.eps)
    found = []
    for step in range(STEPS):
        logits, labels = logits_and_labels(model, global_batch(step))
        z_loss = config.loss.z_loss * logits.logsumexp(1).square().mean()
        weights = torch.where((labels >= 4) & (labels < 8196), config.loss.image_weight, 1.0)
        entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        ((weights * entropy).sum() / weights.sum() + z_loss).backward()
        gradients = by_group(model, "gradient")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPED)
        assert norm > CLIPPED, "clipping changes nothing"
        optimizer.step()
        optimizer.zero_grad()
        if step in MEASURED:
            found.append(gradients | by_group(model, "parameter"))
    return found


def by_group(model: Transformer, what: str) -> Norms:
    squares = dict.fromkeys(WITHOUT_HEAD, 0.0)
    for name, parameter in model.named_parameters():
        values = parameter.grad if what == "gradient" else parameter
        assert values is not None
        squares[group_of(name)] += float(values.detach().double().square().sum())
    return {f"{what}_norm/{group}": math.sqrt(square) for group, square in squares.items()}


@pytest.fixture(scope="module")
def expected() -> list[Norms]:
    return plain()


def root_sum_square(norms: Norms) -> float:
    return math.hypot(*[norms[f"gradient_norm/{group}"] or math.nan for group in WITHOUT_HEAD])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mesh", [Mesh(1, 2), Mesh(2, 2), Mesh(2, 1)])
def test_equal_to_one_plain_process(mesh: Mesh, stage: int, expected: list[Norms]) -> None:
    for found, whole, _ in partitioned_at_each_stage(mesh, CLIPPED, "fp32", 1)[stage]:
        for ours, theirs, norm in zip(found, expected, whole, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5)
            assert root_sum_square(ours) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("clipping", [CLIPPED, UNCLIPPED])
def test_in_bf16_the_groups_give_the_reported_norm(stage: int, clipping: float) -> None:
    for found, whole, _ in partitioned_at_each_stage(Mesh(1, 2), clipping, "bf16", 2)[stage]:
        assert [root_sum_square(one) for one in found] == pytest.approx(whole, rel=1e-5)


def train_without_measuring(mesh: Mesh, stage: int) -> list[list[float]]:
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    groups = ProcessGroups.create(mesh)
    engine = Engine.build(settings(mesh, stage), groups)
    curve = []
    for step in range(STEPS):
        result = engine.step(parts(global_batch(step), mesh, 1, groups.data_rank), LEARNING_RATE)
        curve.append([float(result.loss), float(result.gradient_norm)])
    return curve


@pytest.mark.parametrize("stage", [1, 3])
def test_measuring_changes_no_bit_of_the_training(stage: int) -> None:
    mesh = Mesh(1, 2)
    measured = partitioned_at_each_stage(mesh, CLIPPED, "fp32", 1)[stage][0]
    assert measured[2] == run_ranks(train_without_measuring, 2, mesh, stage)[0]


def broken_then_read(mesh: Mesh) -> tuple[Norms, str]:
    """Norms of a step with a weight that is NaN, and the message of reading without a request."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.telemetry.norms import GroupNorms

    groups = ProcessGroups.create(mesh)
    engine = Engine.build(dataclasses.replace(settings(mesh, 1), optim=OptimConfig()), groups)
    with torch.no_grad():
        engine.module.lm_head.weight[0, 0] = torch.nan
    norms = GroupNorms(engine)
    norms.request()
    engine.step(parts(global_batch(0), mesh, 1, groups.data_rank), LEARNING_RATE)
    found = norms.read()
    try:
        norms.read()
    except RuntimeError as error:
        return found, str(error)
    return found, ""


def test_a_gradient_of_nan_has_no_norm_and_reading_needs_a_request() -> None:
    found, message = run_ranks(broken_then_read, 1, Mesh(1, 1))[0]
    assert found["gradient_norm/attention"] is None
    assert "call request() before the step" in message


def test_every_parameter_has_a_group() -> None:
    config = settings(Mesh(1, 1), action_head=ActionHeadConfig()).model
    found = {name: group_of(name) for name in expected_shapes(config)}
    assert set(found.values()) == set(GROUPS)
    assert found["model.layers.0.self_attn.q_norm.weight"] == "norms"
    assert found["model.layers.1.self_attn.o_proj.weight"] == "attention"
    assert found["model.layers.1.mlp.down_proj.weight"] == "feed_forward"
    assert found["model.norm.weight"] == "norms"
    assert found["model.embed_tokens.weight"] == "embedding"
    assert found["lm_head.weight"] == "head"
    assert found["action_head.transformer_encoder.norm.weight"] == "action_head"
    with pytest.raises(ValueError, match=r"rotary\.table"):
        group_of("rotary.table")
