"""The table of `benchmarks.step`: two counts of MFU, all layers extrapolated from two depths."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import step
from benchmarks.packed import packed_batch
from benchmarks.step_run import Case, Measured, square_pairs
from benchmarks.step_table import COLUMNS, Timed, best_mfu, extrapolated_row, extrapolated_seconds, row_of
from pretrain.config import TrainerConfig, TrainingConfig
from pretrain.model.config import ModelConfig, RecomputePolicy
from pretrain.planner.flops import Workload

PEAK = 1e12


def timed(layers: int, seconds: float, recompute: RecomputePolicy = "none") -> Timed:
    model = ModelConfig(hidden_size=64, ffn_size=96, layers=layers, heads=4, recompute=recompute)
    config = TrainingConfig(trainer=TrainerConfig(global_batch=1), model=model)
    work = Workload(tokens=1000, labelled=100, pairs=50_000)
    measured = Measured([seconds, seconds], work, 99_000, PEAK, None, 10, "sdpa")
    return Timed(Case("7b", 32, config, 1, 256, 2, "cpu"), measured, PEAK)


def test_a_step_of_all_layers_lies_on_the_line_through_two_depths() -> None:
    fixed, of_a_layer = 0.25, 0.125
    seconds = {layers: fixed + of_a_layer * layers for layers in (4, 12, 32)}
    assert extrapolated_seconds((4, seconds[4]), (12, seconds[12]), 32) == seconds[32]
    shallow, deep = timed(4, seconds[4]), timed(12, seconds[12])
    for earlier, newest in ((shallow, deep), (deep, shallow)):
        row = extrapolated_row([timed(8, 9.0, "full"), earlier], newest)
        assert row is not None
        whole = row_of(timed(32, seconds[32]), deep)
        speeds = (
            "seconds",
            "tokens_per_second",
            "teraflops",
            "mfu",
            "mfu_full",
            "model",
            "layers",
            "recompute",
        )
        assert {key: row[key] for key in speeds} == {key: whole[key] for key in speeds}
        assert row["variant"] == "7b 32/32 layers, from 4 and 12, sdpa, none"
        assert row["extrapolated"] is True
        assert row["added"] is row["relative"] is None
        assert row.keys() == {column.key for column in COLUMNS}


@pytest.mark.parametrize(
    ("earlier", "newest"),
    [
        ([], timed(4, 1.0)),
        ([timed(4, 1.0, "full")], timed(12, 2.0)),
        ([timed(12, 1.0)], timed(12, 2.0)),
        ([timed(4, 2.0)], timed(12, 1.0)),
        ([timed(4, 1.0)], timed(32, 2.0)),
    ],
    ids=["alone", "another variant", "one depth", "a quicker deep network", "whole"],
)
def test_nothing_is_extrapolated_without_two_depths_on_a_rising_line(
    earlier: list[Timed], newest: Timed
) -> None:
    assert extrapolated_row(earlier, newest) is None


def test_full_attention_counts_the_square_of_each_sample() -> None:
    batch = packed_batch(2, 2048)
    lengths = [
        int((row == segment).sum()) for row in batch.segments for segment in set(row[row > 0].tolist())
    ]
    assert square_pairs(batch) == sum(length**2 for length in lengths)
    causal = Workload.of(batch).pairs
    assert square_pairs(batch) == 2 * causal - int((batch.segments > 0).sum())
    row = row_of(timed(4, 1.0), timed(4, 1.0))
    more = 12 * 4 * 64 * (99_000 - 50_000) / PEAK
    assert row["mfu_full"] - row["mfu"] == pytest.approx(100 * more)


def test_the_best_mfu_is_of_the_most_layers() -> None:
    rows = [row_of(each, each) for each in (timed(4, 0.01), timed(12, 1.0), timed(12, 0.5, "full"))]
    best = best_mfu(rows, "7b")
    assert best is not None
    assert (best["layers"], best["recompute"]) == (12, "full")
    assert best_mfu(rows, "1b") is None
    assert best_mfu([dict.fromkeys(rows[0]) | {"model": "7b", "layers": 12}], "7b") is None


def test_each_row_is_written_before_the_next_variant_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "step.json"
    seen: list[int] = []

    def measure(function: object, calls: list[tuple[Case]]) -> list[Measured | None]:
        seen.append(out.read_text().count('"variant":') if out.is_file() else 0)
        if len(seen) == 3:
            raise KeyboardInterrupt
        layers = calls[0][0].config.model.layers
        return [dataclasses.replace(timed(layers, float(layers)).measured, held=1)]

    monkeypatch.setattr(step, "run_in_processes", measure)
    monkeypatch.setattr(step.torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr("benchmarks.report.torch.cuda.get_device_name", lambda: "NVIDIA H100")
    words = ["--device", "cuda", "--models", "7b", "--layers", "4", "12", "--recompute", "none", "full"]
    with pytest.raises(KeyboardInterrupt):
        step.main([*words, "--out", str(out)])
    assert [np.sign(number) for number in seen] == [0, 1, 1]
    assert out.read_text().count('"layers": ') == 4, "one of each depth, the extrapolated one, and the unit"
    assert '"finished": false' in out.read_text()
