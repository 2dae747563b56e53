"""Planning a thousand million windows takes little memory; the order is sorted part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import stream_scale
from data.stream.windows import stable_order as order


def test_a_thousand_million_windows_are_planned_in_100_megabytes(tmp_path: Path) -> None:
    measured = stream_scale.measure(tmp_path, stream_scale.EPISODES)
    assert measured["windows"] > 10**9
    assert measured["peak_bytes"] < 100 * 10**6


@pytest.mark.parametrize("highest", [1, 40, 65_535, 65_536, 10**9])
@pytest.mark.parametrize("part", [1, 7, 1000])
def test_the_order_is_stable_for_any_part_size(
    highest: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = np.random.default_rng(highest).integers(0, highest + 1, 500)
    keys[-1] = highest
    monkeypatch.setattr(order, "PART", part)
    found = order.stable_order(keys)
    assert found.dtype == np.int32
    assert np.array_equal(found, np.argsort(keys, kind="stable"))
    assert len(order.stable_order(keys[:0])) == 0
