"""Lion under ZeRO and tensor parallelism: one plain process's curve, and checkpoints with one moment."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.errors import InputError
from data.storage.store import open_store
from pretrain.checkpoint.manifest import Manifest
from pretrain.config import OptimConfig, TrainingConfig
from pretrain.lion import SkippableLion
from pretrain.parallel.mesh import Mesh
from tests.support import checkpoint_case as case
from tests.support.engine_case import Curve, settings, token_loss, train_each, train_plain
from tests.support.ranks import run_ranks

STAGES = (0, 1, 2, 3)


class WrittenOut(torch.optim.Optimizer):
    """The update as in the paper."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                moment = self.state[weight].setdefault("m", torch.zeros_like(weight))
                direction = torch.sign(first * moment + (1 - first) * weight.grad)
                weight -= group["lr"] * (direction + group["weight_decay"] * weight)
                moment.copy_(second * moment + (1 - second) * weight.grad)


def written_out(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return WrittenOut(groups, {"lr": config.lr, "betas": config.betas})


@pytest.fixture(scope="module")
def plain() -> Curve:
    return train_plain(token_loss, build=written_out)


@cache
def curves_at_each_stage(mesh: Mesh) -> list[list[Curve]]:
    """By rank and ZeRO stage: one start of the ranks serves all stages."""
    trainings = []
    for stage in STAGES:
        config = settings(mesh, stage)
        config.optim.name = "lion"
        trainings.append((config, 1))
    return run_ranks(train_each, mesh.size, trainings)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mesh", [Mesh(1, 2), Mesh(2, 1)], ids=["TP1", "TP2"])
def test_every_layout_equals_one_plain_process(plain: Curve, mesh: Mesh, stage: int) -> None:
    for curves in curves_at_each_stage(mesh):
        curve = curves[stage]
        off = [max(abs(a[i] - b[i]) for a, b in zip(curve, plain, strict=True)) for i in (0, 1)]
        assert off[0] < 5e-6
        assert off[1] < 1e-4
        assert curve[-1][0] < curve[0][0] - 0.1


def test_skipped_update_changes_neither_weight_nor_moment_for_any_gradient() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(50))
    optimizer = SkippableLion([weight], lr=0.1, weight_decay=0.5, foreach=False)
    weight.grad = torch.randn(50)
    optimizer.step()
    before, moment = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    assert not torch.equal(moment, torch.zeros(50))
    for bad in (torch.nan, torch.inf, 1e38, 1.0):
        weight.grad = torch.full((50,), bad)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
        assert torch.equal(weight, before)
        assert torch.equal(optimizer.state[weight]["exp_avg"], moment)
        assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.found_inf = torch.zeros(())
    weight.grad = torch.ones(50)
    optimizer.step()
    expected = before * (1 - 0.1 * 0.5) - 0.1 * torch.sign(moment.lerp(torch.ones(50), 0.1))
    torch.testing.assert_close(weight.detach(), expected)


LAYOUTS = {"TP1xDP2-ZeRO1": (1, 2, 1), "TP2xDP1-ZeRO3": (2, 1, 3), "TP1xDP2-ZeRO0": (1, 2, 0)}


def lion(layout: case.Layout) -> TrainingConfig:
    # No action head: the bias of its attention's keys has no gradient but rounding, whose sign Lion takes.
    config = case.config(layout, head=False)
    config.optim.name = "lion"
    return config


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[float]]]:
    actual: dict[str, tuple[Path, list[float]]] = {}
    for name, layout in LAYOUTS.items():
        root = tmp_path_factory.mktemp(name)
        losses = run_ranks(case.train_and_save, 2, lion(layout), root, [3], 8)[0]
        actual[name] = root / "step_00000003", losses
    return actual


@pytest.mark.parametrize("reader", LAYOUTS)
def test_any_layout_resumes_from_any_other(written: dict[str, tuple[Path, list[float]]], reader: str) -> None:
    checkpoints = {name: checkpoint for name, (checkpoint, _) in written.items()}
    continued = run_ranks(case.resume_each, 2, lion(LAYOUTS[reader]), checkpoints, 8)[0]
    for writer, (_, losses) in written.items():
        off = max(abs(a - b) for a, b in zip(continued[writer], losses[3:], strict=True))
        assert off == 0.0 if reader == writer else off < 1e-5, f"{writer} -> {reader}: {off}"


def test_a_checkpoint_holds_one_moment(written: dict[str, tuple[Path, list[float]]]) -> None:
    for checkpoint, _ in written.values():
        manifest = Manifest.read(open_store(str(checkpoint)))
        assert {name.partition("/")[0] for name in manifest.tensors} == {"master", "exp_avg"}
        assert manifest.optimizer_step == 0


def _load(config: TrainingConfig, checkpoint: Path) -> str:
    try:
        case.resume(config, checkpoint, 4)
    except InputError as error:
        return str(error)
    return "no error"


def test_the_other_optimisers_checkpoint_is_refused(
    written: dict[str, tuple[Path, list[float]]], tmp_path: Path
) -> None:
    checkpoint, _ = written["TP1xDP2-ZeRO1"]
    for message in run_ranks(_load, 2, case.config((1, 2, 3), head=False), checkpoint):
        assert "does not hold exp_avg_sq; resume with the optimiser" in message
        assert "resume with the optimiser that it was saved with" in message
    run_ranks(case.train_and_save, 2, case.config((1, 2, 3), head=False), tmp_path, [1], 1)
    for message in run_ranks(_load, 2, lion((1, 2, 3)), tmp_path / "step_00000001"):
        assert "holds exp_avg_sq, which this optimiser does not have" in message
