"""The count of launches: what a layer launches, and that a change of it is seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.kernels import NETWORKS, layer_launches, main
from pretrain.model import layers


def test_a_layer_has_four_regions_and_nothing_else_between_products(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    assert main(["--out", str(out)]) == 0
    rows = {(r["network"], r["recompute"], r["pass"]): r for r in json.loads(out.read_text())["rows"]}
    assert len(rows) == 2 * 3 * 2
    for network in NETWORKS:
        forward = rows[network, "none", "forward"]
        assert [forward[kind] for kind in ("products", "attention", "regions", "eager")] == [7, 1, 4, 0]
        backward = rows[network, "none", "backward"]
        assert [backward[kind] for kind in ("products", "attention", "regions")] == [14, 1, 4]
    assert rows["7b", "none", "backward"]["eager"] == 3, "sums of the inputs' gradients"
    assert rows["7b", "selective", "backward"]["regions"] == 4 + 4, "two norms, heads, SwiGLU again"
    assert rows["7b", "full", "backward"]["products"] == 14 + 7
    assert rows["7b", "full", "backward"]["regions"] == 2 * 5, "the last branch is added within the layer"


def test_an_operation_outside_of_the_regions_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    function = layers.FeedForward.forward
    monkeypatch.setattr(
        layers.FeedForward,
        "forward",
        lambda self, x: F.dropout(function(self, x), 0.5, True) + torch.ones(()),
    )
    launches = layer_launches(replace(NETWORKS["7b"], dropout=0.0))
    assert launches["forward"]["eager"] == 3, "dropout, ones, sum"
    assert launches["backward"]["eager"] == 3 + 1
