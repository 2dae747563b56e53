from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from pretrain.config import OptimConfig
from pretrain.optim import build_optimizer, learning_rate, parameter_groups

STEPS = 100


def rates(**settings: object) -> list[float]:
    config = OptimConfig(lr=2.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(config, step, STEPS) for step in range(STEPS)]


def test_warm_up_rises_linearly_to_the_peak() -> None:
    actual = rates(schedule="constant", warmup_steps=3)
    assert actual[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert actual[-1] == 2.0


def test_warm_up_may_be_a_fraction_of_the_schedule() -> None:
    for schedule in ("constant", "cosine", "wsd"):
        assert rates(schedule=schedule, warmup_fraction=0.1) == rates(schedule=schedule, warmup_steps=10)
    assert rates(schedule="constant", warmup_steps=50, warmup_fraction=0.0)[0] == 2.0


def test_cosine_falls_from_the_peak_to_the_floor() -> None:
    actual = rates(schedule="cosine", warmup_steps=10, min_lr_ratio=0.1)
    assert actual[10] == 2.0
    assert actual[-1] == pytest.approx(0.2)
    assert actual[10:] == sorted(actual[10:], reverse=True)
    assert learning_rate(OptimConfig(lr=2.0, schedule="cosine"), 50, 101) == pytest.approx(1.0)


def test_wsd_is_flat_and_then_linear() -> None:
    actual = rates(schedule="wsd", warmup_steps=10, decay_fraction=0.2)
    assert set(actual[10:80]) == {2.0}
    assert actual[-1] == pytest.approx(0.0)
    drops = [a - b for a, b in pairwise(actual[79:])]
    assert drops == pytest.approx([0.1] * 20)


def test_a_schedule_shorter_than_its_warm_up_stays_finite() -> None:
    for schedule in ("constant", "cosine", "wsd"):
        config = OptimConfig(lr=1.0, schedule=schedule, warmup_steps=10)
        assert all(0 <= learning_rate(config, step, 1) <= 1 for step in range(20))


def test_norms_and_biases_are_not_decayed_whatever_their_shape() -> None:
    parameters = [
        (name, nn.Parameter(torch.zeros(2, 2)))
        for name in (
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.self_attn.q_norm.bias",
            "model.norm.weight",
            "lm_head.weight",
        )
    ]
    decayed, free = parameter_groups(parameters, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(parameters[i][1]) for i in (0, 1, 5)]
    assert [id(p) for p in free["params"]] == [id(parameters[i][1]) for i in (2, 3, 4)]


def settled(decay_all: bool) -> dict[str, float]:
    """Ones after updates with zero gradients, which only decay changes."""
    names = ("lm_head.weight", "model.norm.weight", "q_norm.bias")
    parameters = {name: nn.Parameter(torch.ones(2, 2)) for name in names}
    config = OptimConfig(lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(parameters.items(), config, decay_all)
    for parameter in parameters.values():
        parameter.grad = torch.zeros(2, 2)
    optimizer.step()
    return {name: parameter.mean().item() for name, parameter in parameters.items()}


def test_the_published_rule_decays_norms_and_biases_too() -> None:
    assert list(settled(decay_all=False).values()) == pytest.approx([0.95, 1.0, 1.0])
    assert list(settled(decay_all=True).values()) == pytest.approx([0.95, 0.95, 0.95])
