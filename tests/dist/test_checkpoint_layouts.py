"""A checkpoint belongs to no layout: a run continues from it in any layout as if it had not been interrupted.

Not all 49 pairs of the seven layouts: a load depends on the shares of the ranks that saved and of the ranks
that load. So each layout loads its own checkpoint and those of two others, chosen such that each is a source
and each kind of change occurs (`test_pairs_cover_every_kind_of_change`): tensor- and data-parallel size up,
down and the same, each ZeRO stage left and entered, offload before, after and on both sides.

Four steps: the first shows the weights, the second also the moments and masters, the others that all of them
are trained on.
"""

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


def _offloaded(settings: TrainingConfig, states: Offload) -> TrainingConfig:
    settings.parallel.offload = states
    return settings


SAVED, LAST = 4, 8
LAYOUTS = {
    "TP1xDP2-ZeRO0": case.config((1, 2, 0)),
    "TP2xDP1-ZeRO1": case.config((2, 1, 1)),
    "TP1xDP2-ZeRO1-offload": _offloaded(case.config((1, 2, 1)), "optimizer"),
    "TP1xDP1-ZeRO2": case.config((1, 1, 2)),
    "TP2xDP2-ZeRO3": case.config((2, 2, 3)),
    "TP4xDP1-ZeRO3": case.config((4, 1, 3)),
    "TP1xDP2-ZeRO3-offload": _offloaded(case.config((1, 2, 3)), "all"),
}

SOURCES = {  # layout that loads -> layouts that saved, beside itself
    "TP1xDP2-ZeRO0": ("TP2xDP1-ZeRO1", "TP4xDP1-ZeRO3"),
    "TP2xDP1-ZeRO1": ("TP1xDP2-ZeRO0", "TP1xDP2-ZeRO3-offload"),
    "TP1xDP2-ZeRO1-offload": ("TP1xDP2-ZeRO0", "TP2xDP2-ZeRO3"),
    "TP1xDP1-ZeRO2": ("TP1xDP2-ZeRO1-offload", "TP4xDP1-ZeRO3"),
    "TP2xDP2-ZeRO3": ("TP1xDP1-ZeRO2", "TP2xDP1-ZeRO1"),
    "TP4xDP1-ZeRO3": ("TP2xDP2-ZeRO3", "TP1xDP2-ZeRO0"),
    "TP1xDP2-ZeRO3-offload": ("TP1xDP1-ZeRO2", "TP1xDP2-ZeRO1-offload"),
}


def _num_ranks(settings: TrainingConfig) -> int:
    return settings.parallel.tensor * settings.parallel.data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[float]]]:
    """By layout a run that was not interrupted: a checkpoint that it saved on the way, and its losses."""
    runs: dict[str, tuple[Path, list[float]]] = {}
    for name, settings in LAYOUTS.items():
        root = tmp_path_factory.mktemp(name)
        losses = run_ranks(case.train_and_save, _num_ranks(settings), settings, root, [SAVED], LAST)[0]
        checkpoint = root / f"step_{SAVED:08d}"
        assert case.latest(root) == checkpoint
        runs[name] = checkpoint, losses
    return runs


@pytest.mark.parametrize("reader", LAYOUTS)
def test_training_continues_from_the_checkpoints_of_other_layouts(
    runs: dict[str, tuple[Path, list[float]]], reader: str, tmp_path: Path
) -> None:
    settings = LAYOUTS[reader]
    checkpoints = {name: runs[name][0] for name in (reader, *SOURCES[reader])}
    continued = run_ranks(case.resume_each, _num_ranks(settings), settings, checkpoints, LAST, tmp_path)[0]
    for writer, checkpoint in checkpoints.items():
        losses = runs[writer][1]
        assert len(continued[writer]) == LAST - SAVED == 4
        difference = max(abs(a - b) for a, b in zip(continued[writer], losses[SAVED:], strict=True))
        assert difference == 0.0 if reader == writer else difference < 1e-5, (
            f"{writer} -> {reader}: {difference}"
        )
        before, after = load_weights(checkpoint), load_weights(tmp_path / writer / checkpoint.name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), "bitwise, through another layout"


def test_pairs_cover_every_kind_of_change() -> None:
    assert SOURCES.keys() == LAYOUTS.keys()
    assert {source for sources in SOURCES.values() for source in sources} == LAYOUTS.keys()
    changes: set[tuple[str, object]] = set()
    for reader, sources in SOURCES.items():
        new = LAYOUTS[reader].parallel
        for old in (LAYOUTS[source].parallel for source in sources):
            changes |= {("tensor", _sign(new.tensor - old.tensor)), ("data", _sign(new.data - old.data))}
            changes |= {("offload", (old.offload != "none", new.offload != "none"))}
            if new.zero_stage != old.zero_stage:
                changes |= {("left", old.zero_stage), ("entered", new.zero_stage)}
    signs = {(name, sign) for name in ("tensor", "data") for sign in (-1, 0, 1)}
    stages = {(name, stage) for name in ("left", "entered") for stage in range(4)}
    offloads = {("offload", (before, after)) for before in (False, True) for after in (False, True)}
    assert signs | stages | offloads <= changes


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def test_bare_weights_fit_a_plain_network(runs: dict[str, tuple[Path, list[float]]]) -> None:
    checkpoint, _ = runs["TP2xDP2-ZeRO3"]
    network = Transformer(case.config((1, 1, 1)).model)
    network.load_state_dict(load_weights(checkpoint), strict=True)
    halves = load_weights(checkpoint, torch.bfloat16)
    assert {tensor.dtype for tensor in halves.values()} == {torch.bfloat16}


def test_bf16_training_resumes_bit_exactly(tmp_path: Path) -> None:
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


def test_other_network_is_refused_with_its_differences(runs: dict[str, tuple[Path, list[float]]]) -> None:
    checkpoint, _ = runs["TP2xDP2-ZeRO3"]
    (message,) = run_ranks(_load_another, 1, checkpoint)
    assert "another network: model.layers.2." in message
    assert "is missing there" in message
