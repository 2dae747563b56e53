"""The attention benchmark counts visible pairs, and states what it could not measure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.attention import main
from benchmarks.packed import LAYOUTS, packed_row, visible_pairs
from pretrain.model.mask import dense_mask


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [700, 2048])
def test_pairs_are_those_of_the_mask(layout: str, tokens: int) -> None:
    segments, blocks = packed_row(layout, tokens)
    assert segments.shape == (1, tokens)
    assert visible_pairs(segments, blocks) == int(dense_mask(segments[0], blocks[0]).sum())


def test_layouts_have_the_stated_samples() -> None:
    segments, blocks = packed_row("packed", 4096)
    numbers, lengths = np.unique(segments, return_counts=True)
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert [int(blocks[segments == number].max()) for number in numbers[1:]] == [5, 0] * 3
    assert set(lengths[1:].tolist()) == {620, 584}  # two frames and five actions; two frames and one
    segments, blocks = packed_row("one", 2048)
    assert (segments == 1).all()
    assert np.count_nonzero(blocks > 0) == 45


def test_unavailable_backends_are_not_measured(tmp_path: Path) -> None:
    out = tmp_path / "attention.json"
    assert main(["--device", "cpu", "--smoke", "--tokens", "640", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    rows = {row["attention"]: row for row in written["rows"] if row["layout"] == "packed"}
    assert rows["flash"]["forward"] is None
    assert rows["flash2"]["causal"] is None
    assert rows["sdpa, dense mask"]["both"] > 0
    assert rows["causal, torch"]["causal"] == 1
    assert any(note.startswith("flash: needs a CUDA device") for note in written["notes"])
    assert [target["met"] for target in written["targets"]] == [None] * 3
