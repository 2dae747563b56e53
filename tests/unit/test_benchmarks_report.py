"""The parts common to all benchmarks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.report import Column, Report, peak_memory, seconds_of


def test_the_table_shows_units_and_what_was_not_measured(tmp_path: Path) -> None:
    columns = [Column("tokens", "tokens"), Column("time", "forward", "ms", digits=1)]
    report = Report("attention", "Attention", columns, "cpu")
    report.add(tokens=1024, time=12.34)
    report.add(tokens=2048, time=None)
    report.target("5 x dense", None, None)
    report.target("0.9 x causal", False, 0.5)
    report.note("two threads")
    console = Console(width=100, record=True)
    report.finish(tmp_path / "deep" / "out.json", console)
    text = console.export_text()
    for expected in (
        "[ms]",
        "12.3",
        "not measured",
        "5 x dense: not measured",
        "missed (0.50)",
        "two threads",
    ):
        assert expected in text
    written = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert written["rows"][1] == {"tokens": 2048, "time": None}
    assert written["units"] == {"tokens": "", "time": "ms"}
    installed = written["environment"]["packages"]["torch"]
    assert installed.partition("+")[0] == torch.__version__.partition("+")[0]  # builds: +cpu, +cu130
    assert [target["met"] for target in written["targets"]] == [None, False]


def test_a_wide_table_is_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"column number {number}" for number in range(10)]
    report = Report("x", "x", [Column(name, name) for name in names], "cpu")
    report.add(**dict.fromkeys(names))
    report.finish(None)
    lines = capsys.readouterr().out.splitlines()
    assert any(all(name in line for name in names) for line in lines)
    assert any(line.count("not measured") == 10 for line in lines)


def test_row_with_other_columns_is_refused() -> None:
    report = Report("x", "x", [Column("a", "a")], "cpu")
    with pytest.raises(ValueError, match="expected"):
        report.add(b=1)


def test_peak_memory_counts_simultaneous_allocations() -> None:
    def one_after_the_other() -> float:
        return sum(float(torch.ones(1 << 20).sum()) for _ in range(4))

    def together() -> torch.Tensor:
        return torch.cat([torch.ones(1 << 20) for _ in range(4)])

    assert 4 << 20 <= peak_memory(one_after_the_other, "cpu") < 6 << 20
    assert 32 << 20 <= peak_memory(together, "cpu") < 34 << 20


def test_seconds_are_the_median_of_timed_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 7.0, 10.0, 11.0, 20.0, 22.0])  # before and after each timed call
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert seconds_of(lambda: calls.append(1), "cpu", repeats=3, warmup=2) == 2.0
    assert len(calls) == 5


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.json"
    report = Report("x", "x", [Column("a", "a")], "cpu", out=out)
    for number in range(2):
        report.add(a=number)
        written = json.loads(out.read_text())
        assert written["rows"] == [{"a": each} for each in range(number + 1)]
        assert written["finished"] is False
    report.finish(out, Console(width=100, record=True))
    assert json.loads(out.read_text()) == {**written, "finished": True}
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]
