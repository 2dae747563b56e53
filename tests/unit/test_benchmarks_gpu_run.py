"""The runner of `benchmarks.gpu`: limits, what is kept of parts that end early, signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import gpu_run
from benchmarks.gpu_parts import Part, allowance
from benchmarks.gpu_run import Outcome, Run
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def part(name: str, way: str, most: float = 1e6) -> Part:
    return Part(name, ("tests.support.measuring_part", way), most)


def written(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text("utf-8"))


def runs(process: int) -> bool:
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("most", "least", "left", "seconds"),
    [
        (40, 15, 500, 40),
        (40, 15, 20, 20),
        (40, 15, 14.9, None),
        (5, 15, 10, 5),  # it never needs more than it may take
        (5, 15, 4, None),
        (40, 15, -3, None),
    ],
)
def test_a_part_takes_its_limit_or_what_is_left_or_is_not_begun(
    most: float, least: float, left: float, seconds: float | None
) -> None:
    assert allowance(Part("a", ("b",), most, least), left) == seconds


def test_each_part_leaves_what_it_wrote_and_says_how_it_ended(tmp_path: Path) -> None:
    shown: list[tuple[str, str]] = []
    run = Run(tmp_path / "deep/gpu.json", 1e6, {})
    parts = [part("one", "done"), part("two", "fails"), part("three", "mute"), part("four", "done")]
    assert run.measure(parts, lambda name, outcome: shown.append((name, outcome.state))) is None
    found = written(tmp_path / "deep/gpu.json")["parts"]
    states = {"one": "done", "two": "failed", "three": "failed", "four": "done"}
    assert {name: each["state"] for name, each in found.items()} == states == dict(shown)
    assert found["two"]["reason"] == "exit status 3: ValueError: no such thing"
    assert found["two"]["log"] == ["measured", "about to fail", "ValueError: no such thing"]
    assert found["one"]["log"] == [], "only what went wrong is read"
    assert found["three"]["reason"] == "exit status 4: no output"
    assert found["three"]["result"] is None
    assert run.results.keys() == {"one", "two", "four"}
    assert found["two"]["result"] == run.results["two"]


def test_a_part_beyond_its_limit_is_ended_with_its_processes_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_run, "_GRACE_SECONDS", 0.1)
    out = tmp_path / "gpu.json"
    started: list[Run] = []

    def clock() -> float:
        """Stands still until the part has written; then its limit is over."""
        outcome = started[0].outcomes.get("hangs") if started else None
        return 50.0 if outcome is not None and outcome.result is not None else 0.0

    run = Run(out, 100.0, {}, clock)
    started.append(run)
    parts = [part("hangs", "waits", most=40.0), part("next", "done")]
    assert run.measure(parts, lambda name, outcome: None) is None
    found = written(out)["parts"]
    assert found["hangs"]["state"] == "ended at its limit"
    assert found["hangs"]["reason"] == "hangs did not end within 40 s"
    assert found["next"]["state"] == "done", "40 of 90 s were left"
    row = found["hangs"]["result"]["rows"][0]
    wait_until(lambda: not runs(row["process"]) and not runs(row["child"]))


def test_parts_without_time_are_skipped_with_the_reason(tmp_path: Path) -> None:
    run = Run(tmp_path / "gpu.json", gpu_run.RESERVE_SECONDS + 20.0, {}, lambda: 0.0)
    run.measure([Part("long", ("none",), 100.0, least=30.0), part("short", "done")], lambda *_: None)
    assert run.outcomes["long"] == Outcome("skipped", reason="20 s were left, it takes 30")
    assert run.outcomes["short"].state == "done"


def test_variables_reach_the_parts_and_the_users_own_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments: list[dict[str, str]] = []
    start = subprocess.Popen

    def popen(*args: Any, env: dict[str, str], **options: Any) -> Any:
        environments.append(env)
        return start(*args, env=env, **options)

    monkeypatch.setattr(gpu_run.subprocess, "Popen", popen)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    Run(tmp_path / "gpu.json", 1e6, {"TRITON_CACHE_DIR": "/caches"}).measure(
        [part("one", "done")], lambda *_: None
    )
    assert environments[0]["OMP_NUM_THREADS"] == "7"
    assert environments[0]["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert environments[0]["TRITON_CACHE_DIR"] == "/caches"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_cut_off_leaves_all_that_was_measured(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import sys; from benchmarks import gpu, gpu_run; from benchmarks.gpu_parts import Part;"
        "gpu_run._GRACE_SECONDS = 0.1;"
        "part = lambda name, way: Part(name, ('tests.support.measuring_part', way), 1e6);"
        "gpu.ON_CPU = (part('one', 'done'), part('two', 'waits'), part('three', 'done'));"
        f"sys.exit(gpu.main(['out={tmp_path}', 'device=cpu', 'minutes=1000']))"
    )
    out = tmp_path / "gpu.json"
    whole = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        wait_until(lambda: out.is_file() and bool((written(out)["parts"].get("two") or {}).get("result")))
        assert written(out)["finished"] is False
        whole.send_signal(number)
        printed = whole.communicate()[0].decode()
    finally:
        whole.kill()
    assert whole.returncode == 128 + number
    found = written(out)
    assert [each["state"] for each in found["parts"].values()] == ["done", "cut off", "skipped"]
    assert found["parts"]["two"]["reason"] == f"{number.name} came"
    assert found["parts"]["one"]["result"]["rows"]
    assert {goal["verdict"] for goal in found["goals"]} == {"not measured"}
    assert "Goals" in printed
    row = found["parts"]["two"]["result"]["rows"][0]
    wait_until(lambda: not runs(row["process"]) and not runs(row["child"]))
