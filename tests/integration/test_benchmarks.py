"""Every benchmark runs at its smallest sizes, prints a table and writes its JSON."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

BENCHMARKS = (
    "attention",
    "loss",
    "decode",
    "step",
    "evaluation",
    "beside",
    "scale",
    "checkpoint",
    "stream",
    "telemetry",
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = importlib.import_module(f"benchmarks.{name}")
    assert program.main(["--smoke", "--device", "cpu", "--out", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["name"] == name
    assert {"device", "cores", "packages", "commit"} <= set(written["environment"])
    rows = written["rows"]
    assert rows
    numbers = [value for row in rows for value in row.values() if isinstance(value, int | float)]
    assert numbers
    assert all(value >= 0 for value in numbers)
    assert written["targets"], "each benchmark says which targets it is held against"
    on_gpu = [target for target in written["targets"] if "H100" in target["target"]]
    assert all(target["met"] is None for target in on_gpu), "a CPU cannot meet or miss a GPU's target"
    assert "target:" in capsys.readouterr().out
