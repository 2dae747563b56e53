"""A checkpoint belongs to no layout: whoever loads it goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.errors import InputError
from pretrain.checkpoint.weights import load_weights
from pretrain.config import Offload, TrainingConfig
from pretrain.model.transformer import Transformer
from tests.support import checkpoint_case as case
from tests.support.ranks import run_ranks


def _offloaded(settings: TrainingConfig, what: Offload) -> TrainingConfig:
    settings.parallel.offload = what
    return settings


SAVED, LAST = 4, 24
LAYOUTS = {
    "TP1xDP2-ZeRO0": case.config((1, 2, 0)),
    "TP2xDP1-ZeRO1": case.config((2, 1, 1)),
    "TP1xDP2-ZeRO1-offload": _offloaded(case.config((1, 2, 1)), "optimizer"),
    "TP1xDP1-ZeRO2": case.config((1, 1, 2)),
    "TP2xDP2-ZeRO3": case.config((2, 2, 3)),
    "TP4xDP1-ZeRO3": case.config((4, 1, 3)),
    "TP1xDP2-ZeRO3-offload": _offloaded(case.config((1, 2, 3)), "all"),
}


def _ranks(settings: TrainingConfig) -> int:
    return settings.parallel.tensor * settings.parallel.data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[float]]]:
    """By layout a run that was never interrupted: the checkpoint it left on its way, and its losses."""
    found: dict[str, tuple[Path, list[float]]] = {}
    for name, settings in LAYOUTS.items():
        root = tmp_path_factory.mktemp(name)
        losses = run_ranks(case.train_and_save, _ranks(settings), settings, root, [SAVED], LAST)[0]
        checkpoint = root / "step_00000004"
        assert case.latest(root) == checkpoint
        found[name] = checkpoint, losses
    return found


@pytest.mark.parametrize("reader", LAYOUTS)
def test_twenty_steps_from_any_layout_in_any_other(
    written: dict[str, tuple[Path, list[float]]], reader: str, tmp_path: Path
) -> None:
    settings = LAYOUTS[reader]
    checkpoints = {name: checkpoint for name, (checkpoint, _) in written.items()}
    continued = run_ranks(case.resume_each, _ranks(settings), settings, checkpoints, LAST, tmp_path)[0]
    for writer, (checkpoint, losses) in written.items():
        assert len(continued[writer]) == LAST - SAVED == 20
        off = max(abs(a - b) for a, b in zip(continued[writer], losses[SAVED:], strict=True))
        assert off == 0.0 if reader == writer else off < 1e-5, f"{writer} -> {reader}: {off}"
        before, after = load_weights(checkpoint), load_weights(tmp_path / writer / checkpoint.name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), "bitwise, through another layout"


def test_the_weights_alone_fit_a_plain_network(written: dict[str, tuple[Path, list[float]]]) -> None:
    checkpoint, _ = written["TP2xDP2-ZeRO3"]
    network = Transformer(case.config((1, 1, 1)).model)
    network.load_state_dict(load_weights(checkpoint), strict=True)
    halves = load_weights(checkpoint, torch.bfloat16)
    assert {tensor.dtype for tensor in halves.values()} == {torch.bfloat16}


def test_bf16_keeps_its_masters(tmp_path: Path) -> None:
    layout = (2, 2, 3)
    settings = case.config(layout, precision="bf16", dropout=0.1)
    losses = run_ranks(case.train_and_save, 4, settings, tmp_path, [3], 6)[0]
    continued = run_ranks(case.resume, 4, settings, tmp_path / "step_00000003", 6)[0]
    assert continued == losses[3:], "bit-exact, dropout included"


def _load_another(checkpoint: Path) -> str:
    settings = case.config((1, 1, 1))
    settings.model.layers = 3
    settings.model.ffn_size = 48
    try:
        case.resume(settings, checkpoint, 5)
    except InputError as error:
        return str(error)
    return "no error"


def test_another_network_is_refused_by_name(written: dict[str, tuple[Path, list[float]]]) -> None:
    checkpoint, _ = written["TP2xDP2-ZeRO3"]
    (message,) = run_ranks(_load_another, 1, checkpoint)
    assert "another network: model.layers.2." in message
    assert "is missing there" in message
