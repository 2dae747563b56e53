"""Every benchmark runs at its smallest sizes, prints a table and writes what it measured as JSON.

Processes that a benchmark starts are forked from this one, with the heavy imports done. Nothing here depends
on how fast the machine is.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes
from tests.support import ranks  # sets DeepSpeed's environment and preloads it

pytestmark = pytest.mark.timeout(600)  # simulators and servers start slowly on a busy machine

Rows = list[dict[str, Any]]


def column(rows: Rows, key: str) -> list[Any]:
    return [row[key] for row in rows]


def check_attention(rows: Rows) -> None:
    for layout in ("packed", "one"):
        measured = {r["attention"] for r in rows if r["layout"] == layout and r["both"] is not None}
        assert measured == {"causal, torch", "sdpa, dense mask"}, "what a CPU can run"
    assert all(row["causal"] == 1 for row in rows if row["attention"] == "causal, torch")
    assert all(row["dense"] == 1 for row in rows if row["attention"] == "sdpa, dense mask")


def check_loss(rows: Rows) -> None:
    peaks = dict(zip(column(rows, "loss"), column(rows, "peak"), strict=True))
    assert peaks["blocks"] < peaks["whole logits"] < peaks["whole logits, fp32"]


def check_decode(rows: Rows) -> None:
    assert column(rows, "way") == ["parallel", "block", "token", "continuous", "image", "guided"]
    assert rows[0]["times_the_first"] == rows[4]["times_the_first"] == 1
    for row, tokens in zip(rows, (45, 45, 45, 45, 64, 64), strict=True):
        assert row["tokens_per_second"] == pytest.approx(tokens * row["answers_per_second"])


def check_step(rows: Rows) -> None:
    assert [row["variant"].split(", ")[-1] for row in rows] == ["none", "full"]
    assert rows[0]["relative"] == 1
    assert rows[1]["added"] < rows[0]["added"], "recomputation saves memory"


def check_evaluation(rows: Rows) -> None:
    assert column(rows, "way") == ["loop", "frugal loop", "1 workers"]
    assert column(rows, "same_actions") == [True] * 3
    assert {(row["episodes"], row["steps"]) for row in rows} == {(1, 6)}
    assert rows[0]["faster"] == rows[0]["of_loop"] == 1
    assert column(rows, "same_states") == [1, 1, None], "the pool's simulators are in other processes"
    assert column(rows, "of_vla_eval") == [None] * 3


def check_libero_tasks(rows: Rows) -> None:
    assert column(rows, "suite") == ["libero_object", "libero_goal"]
    assert {(row["tasks"], row["opened"], row["failed"]) for row in rows} == {(1, 1, 0)}
    assert column(rows, "by_expert") == [1, 0], "the expert has no script for a drawer"


def check_beside(rows: Rows) -> None:
    assert column(rows, "way") in (["alone", "beside an evaluation"], [])  # [] on a machine of one core
    assert not rows or rows[0]["relative"] == 1


def check_scale(rows: Rows) -> None:
    assert column(rows, "ranks") == [4, 8, 4, 8, 8]
    assert all(row["requests"] < row["requests_full"] for row in rows)
    assert all(row["per_episode"] <= 1.1 and row["copies"] <= 1.5 for row in rows)
    assert column(rows, "files") == [2 * ranks + 3 for ranks in column(rows, "ranks")]
    for row in rows:
        assert row["load"] == pytest.approx(max(row["loads"].values()), abs=1e-4)
        assert row["bottleneck"] in row["loads"]


def check_checkpoint(rows: Rows) -> None:
    asynchronous = ["torch DCP async_save", "torch DCP async_save, DefaultStager"]
    assert column(rows, "way") == ["ours", "ours, copied at once", "DeepSpeed", "torch DCP", *asynchronous]
    assert all(row["longer"] > row["stall"] - row["step"] for row in rows), "the stall is part of it"
    assert all(row["stored"] >= 2 * row["shard"] * 0.99 for row in rows), "all ranks' state is on the disk"


def check_shuffle(rows: Rows) -> None:
    assert column(rows, "way") == ["full", "local", "webdataset", "py1e"]
    assert rows[0]["within"] == pytest.approx(1 / 3, abs=0.01), "windows of an episode at random places"
    assert rows[1]["open"] < rows[0]["open"]
    assert len(set(column(rows, "step"))) == 1


def check_stream(rows: Rows) -> None:
    windows = dict(zip(column(rows, "way"), column(rows, "windows"), strict=True))
    assert len(windows) == 9
    little = {"little memory, full", "little, full, cache", "little memory, local", "little, local, later"}
    assert little < windows.keys()
    whole = windows["webdataset, samples"]
    assert windows["webdataset, episodes"] == windows["webdataset, tokens"] == whole
    assert windows["stream, first epoch"] >= whole, "an epoch of whole steps"


def check_telemetry(rows: Rows) -> None:
    assert column(rows, "way") == ["none", "1", "10"]
    assert column(rows, "lines")[:2] == [0, 2], "a line after each of two steps"
    assert rows[0]["relative"] == rows[0]["processor"] == 1


def check_variants(rows: Rows) -> None:
    assert column(rows, "way") == ["recorded", "variant"]
    assert column(rows, "plain") == [128, 128], "8 x 8 codes of two bytes"
    assert all(0 < row["zstd"] <= 160 for row in rows)


def check_prepare_reading(rows: Rows) -> None:
    assert column(rows, "way") == ["PyAV", "read", "read and resize"]
    assert column(rows, "frames") == [2 * 2 * 6] * 3, "cameras, episodes, steps"
    assert rows[0]["of_decoding"] == 1


def check_checkpoint_files(rows: Rows) -> None:
    assert column(rows, "files") == [35, 35, 19, 7], "16 ranks of two nodes; chunk table, manifest and READY"
    assert column(rows, "of_file") == [1, 1, 1, 5], "the file of a node takes two parts"
    assert column(rows, "save") == [32, 32, 16, 12]
    assert {row["commit"] for row in rows} == {3}
    assert {row["removal"] for row in rows} == {3}, "a list, READY, the other objects"


def check_checkpoint_commit(rows: Rows) -> None:
    assert column(rows, "ranks") == [8]
    assert rows[0]["messages"] < 0.1


# Options besides --smoke, the columns whose values must be positive numbers, and what else must hold.
BENCHMARKS: dict[str, tuple[list[str], tuple[str, ...], Callable[[Rows], None]]] = {
    "attention": (["--tokens", "640"], (), check_attention),
    "loss": (["--tokens", "256"], ("peak", "beside", "seconds"), check_loss),
    "decode": ([], ("milliseconds", "tokens_per_second", "answers_per_second"), check_decode),
    "step": (["--steps", "1"], ("seconds", "tokens_per_second", "teraflops", "mfu", "added"), check_step),
    "evaluation": (
        ["--episodes", "1", "--horizon", "6"],
        ("seconds", "cpu_seconds", "steps_per_second", "faster"),
        check_evaluation,
    ),
    "libero_tasks": ([], ("darkest", "brightest", "cpu_seconds"), check_libero_tasks),
    "beside": ([], ("seconds", "relative"), check_beside),
    "scale": ([], ("step", "plan_start", "plan_step", "commit", "opening", "load"), check_scale),
    "checkpoint": ([], ("shard", "stall", "step", "write", "load", "stored", "copies"), check_checkpoint),
    "checkpoint_files": (
        [],
        ("largest", "start", "retention", "create", "list", "remove"),
        check_checkpoint_files,
    ),
    "checkpoint_commit": (
        [],
        ("messages", "seconds", "cpu_seconds", "beside", "opening"),
        check_checkpoint_commit,
    ),
    "stream": (["--repeats", "1"], ("windows", "cpu_seconds", "seconds", "rate", "times"), check_stream),
    "prepare_reading": ([], ("cpu_seconds", "seconds", "rate", "of_decoding"), check_prepare_reading),
    "shuffle": ([], ("windows", "within", "between", "open"), check_shuffle),
    "telemetry": ([], ("seconds", "relative", "processor"), check_telemetry),
    "variants": ([], ("count", "encode", "psnr"), check_variants),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_runs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, positive, check = BENCHMARKS[name]
    monkeypatch.setattr(processes, "START_METHOD", "fork")
    assert ranks.torch.get_num_threads() == 1, "a fork would not have this process's threads"
    program = importlib.import_module(f"benchmarks.{name}")
    out = tmp_path / "out.json"
    assert program.main(["--smoke", "--device", "cpu", "--out", str(out), *options]) == 0
    written = json.loads(out.read_text())
    assert written["name"] == name
    assert {"device", "cores", "packages", "commit"} <= set(written["environment"])
    rows = written["rows"]
    assert all(row.keys() == written["units"].keys() for row in rows)
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    for key in positive:
        assert all(row[key] > 0 for row in rows), key
    check(rows)
    assert written["targets"] or not rows, "each benchmark states its targets"
    on_gpu = [target for target in written["targets"] if "H100" in target["target"]]
    assert all(target["met"] is None for target in on_gpu), "a CPU cannot meet or miss a GPU's target"
    printed = capsys.readouterr().out
    assert all(f"target: {target['target']}: " in printed for target in written["targets"])
