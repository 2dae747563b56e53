"""A checkpoint belongs to no layout: whoever loads it goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.errors import InputError
from pretrain.checkpoint.load import load_weights
from pretrain.checkpoint.manifest import latest
from pretrain.model.transformer import Transformer
from tests.dist import checkpoint_case as case
from tests.dist.harness import run_ranks

WRITERS = [(2, 2, 3), (1, 2, 1), (2, 1, 2)]
READERS = [(2, 2, 3), (1, 2, 1), (1, 1, 2), (4, 1, 3)]
LAST = 8


def world(layout: case.Layout) -> int:
    return layout[0] * layout[1]


def name(layout: case.Layout) -> str:
    return "TP{}xDP{}-ZeRO{}".format(*layout)


@pytest.fixture(scope="module", params=WRITERS, ids=name)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A run that was never interrupted, and the checkpoint it left on its way."""
    layout = request.param
    root = tmp_path_factory.mktemp(name(layout))
    losses = run_ranks(case.train_and_save, world(layout), case.config(layout), root, [4], LAST)[0]
    checkpoint = latest(root)
    assert checkpoint is not None
    assert checkpoint.name == "step_00000004"
    return layout, checkpoint, losses


@pytest.mark.parametrize("reader", READERS, ids=name)
def test_any_layout_continues_the_loss_curve(written: tuple, reader: case.Layout, tmp_path: Path) -> None:
    writer, checkpoint, losses = written
    root = tmp_path / "again"
    continued = run_ranks(case.resume, world(reader), case.config(reader), checkpoint, LAST, root)[0]
    off = max(abs(a - b) for a, b in zip(continued, losses[4:], strict=True))
    assert off == 0.0 if reader == writer else off < 1e-5, f"{name(writer)} -> {name(reader)}: {off}"
    before, after = load_weights(checkpoint), load_weights(root / checkpoint.name)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "bitwise, through another layout"


def test_the_weights_alone_fit_a_plain_network(written: tuple) -> None:
    _, checkpoint, _ = written
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


def test_another_network_is_refused_by_name(written: tuple) -> None:
    (message,) = run_ranks(_load_another, 1, written[1])
    assert "another network: model.layers.2." in message
    assert "is missing there" in message
