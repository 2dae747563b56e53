"""The average of the weights (`optim.ema`): its values at every layout, in checkpoints and across a resume."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import EMA, MASTER, Manifest, StoredAverage
from pretrain.checkpoint.weights import load_weights
from pretrain.config import Offload, TrainingConfig
from pretrain.model.transformer import Transformer, initialise
from pretrain.optim import parameter_groups
from pretrain.parallel.mesh import Mesh
from tests.support import checkpoint_case as case
from tests.support import engine_case
from tests.support.ranks import run_ranks

DECAY, STEPS, SKIPPED = 0.7, 10, 4  # below the warm-up's own value from update 20 on, and so after it: both
ROUNDING = 3e-7  # of sums of fp32 weights of at most 1

AVERAGED = Mapping[str, Tensor]


def decay_of(update: int, decay: float) -> float:
    """The decay at an update (from 0), written out."""
    return min(decay, (1 + update) / (10 + update))


def with_average(config: TrainingConfig, decay: float | None = DECAY) -> TrainingConfig:
    config.optim.ema = decay
    return config


def offloaded(config: TrainingConfig, states: Offload) -> TrainingConfig:
    config.parallel.offload = states
    return config


def follow_by_hand(config: TrainingConfig, decay: float, root: Path) -> tuple[float, int, set[str]]:
    """Train with one skipped step; compare every fragment with an fp64 average of its masters.

    Returns:
        The largest difference, the updates that the engine has counted, the devices of the averages.
    """
    from pretrain.checkpoint.fragments import fragments
    from pretrain.checkpoint.save import CheckpointWriter

    engine = case.build(config)
    expected = {part.name: part.states[MASTER].double() for part in fragments(engine)}
    updates = 0
    for step in range(STEPS):
        skip = step == SKIPPED
        before = {part.name: part.states[EMA].clone() for part in fragments(engine)}
        batch = case.batch(step, engine.groups.data_rank, engine.groups.mesh.data)
        result = engine.step([batch], case.LEARNING_RATE, lambda loss, norm, skip=skip: torch.tensor(skip))
        assert bool(result.skipped) == skip
        for part in fragments(engine):
            if skip:
                assert torch.equal(part.states[EMA], before[part.name])
                continue
            rate = decay_of(updates, decay)
            expected[part.name] = rate * expected[part.name] + (1 - rate) * part.states[MASTER].double()
        updates += not skip
    assert engine.average is not None
    differences = [float((part.states[EMA] - expected[part.name]).abs().max()) for part in fragments(engine)]
    moved = [not torch.equal(part.states[EMA], part.states[MASTER]) for part in fragments(engine)]
    assert all(moved)
    writer = CheckpointWriter(root, engine)
    writer.save(STEPS, {})
    writer.wait()
    return (
        max(differences),
        int(engine.average.updates),
        {part.states[EMA].device.type for part in fragments(engine)},
    )


LAYOUTS = {
    **{
        f"TP{tensor}xDP2-ZeRO{stage}": case.config((tensor, 2, stage))
        for tensor in (1, 2)
        for stage in (0, 1, 3)
    },
    "TP1xDP2-ZeRO2-offload": offloaded(case.config((1, 2, 2)), "optimizer"),
    "TP1xDP2-ZeRO3-offload": offloaded(case.config((1, 2, 3)), "all"),
}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, list[tuple[float, int, set[str]]]]]:
    """By layout a checkpoint after the last step, and what its ranks have found."""
    found: dict[str, tuple[Path, list[tuple[float, int, set[str]]]]] = {}
    for name, config in LAYOUTS.items():
        root = tmp_path_factory.mktemp(name)
        ranks = config.parallel.tensor * config.parallel.data
        outcomes = run_ranks(follow_by_hand, ranks, with_average(config), DECAY, root)
        found[name] = root / f"step_{STEPS:08d}", outcomes
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_averages_what_it_updates(trained: Any, layout: str) -> None:
    checkpoint, outcomes = trained[layout]
    for difference, updates, _ in outcomes:
        assert difference <= ROUNDING
        assert updates == STEPS - 1
    assert Manifest.read(open_checkpoint(checkpoint)).average == StoredAverage(DECAY, STEPS - 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_average_the_same(trained: Any, layout: str) -> None:
    found = load_weights(trained[layout][0], choice="averaged")
    expected = load_weights(trained["TP1xDP2-ZeRO0"][0], choice="averaged")
    last = load_weights(trained[layout][0], choice="trained")
    print(
        layout,
        max(float((found[n] - expected[n]).abs().max()) for n in found),
        max(float((last[n] - load_weights(trained["TP1xDP2-ZeRO0"][0])[n]).abs().max()) for n in found),
    )
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=5e-5)
        assert not torch.equal(values, last[name])
