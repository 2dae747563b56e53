"""The runner of `benchmarks.gpu`: limits, what is kept of parts that end early, signals."""

from __future__ import annotations

import errno
import json
import os
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
from data.errors import InputError
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
    with run.alone():
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


def test_a_part_ends_with_the_run_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import sys; from benchmarks import gpu; from benchmarks.gpu_parts import Part;"
        "gpu.ON_CPU = (Part('one', ('tests.support.measuring_part', 'waits'), 1e6),);"
        f"sys.exit(gpu.main(['out={tmp_path}', 'device=cpu', 'minutes=1000']))"
    )
    out = tmp_path / "gpu.json"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    whole = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment)
    try:
        wait_until(lambda: out.is_file() and bool((written(out)["parts"].get("one") or {}).get("result")))
    finally:
        whole.kill()
        whole.wait()
    row = written(out)["parts"]["one"]["result"]["rows"][0]
    wait_until(lambda: not runs(row["process"]) and not runs(row["child"]))
    outcome = gpu_run.earlier_outcomes(out)["one"]
    assert (outcome.state, outcome.reason) == ("cut off", "its run was killed")


def test_a_later_run_keeps_the_parts_that_it_does_not_measure(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    for names in (["one", "two"], ["two", "three"]):
        run = Run(out, 1e6, {})
        with run.alone():
            run.measure([part(name, "done") for name in names], lambda *_: None)
    found = written(out)["parts"]
    assert {name: each["state"] for name, each in found.items()} == dict.fromkeys(
        ["one", "two", "three"], "done"
    )
    short = Run(out, gpu_run.RESERVE_SECONDS, {}, lambda: 0.0)
    shown: list[str | None] = []
    with short.alone():
        short.measure([part("two", "done")], lambda _, outcome: shown.append(outcome.reason))
    assert written(out)["parts"] == found, "what an earlier run has measured is not lost for want of time"
    assert shown == ["0 s were left, it takes 15"]


def test_a_folder_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    first, second = (Run(tmp_path / "gpu.json", 1e6, {}) for _ in range(2))
    with (
        first.alone(),
        pytest.raises(InputError, match="another run is measuring into it"),
        second.alone(),
    ):
        pass
    with second.alone():
        pass


@pytest.mark.parametrize("content", ["not JSON", "[]", '{"parts": {"one": {"unknown": 1}}}'])
def test_files_of_something_else_are_not_replaced(content: str, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    out.write_text(content)
    with pytest.raises(InputError, match="not a result of this command"), Run(out, 1e6, {}).alone():
        pass
    assert out.read_text() == content


def test_a_disk_that_is_full_costs_the_file_and_not_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = Run(tmp_path / "gpu.json", 1e6, {})
    with run.alone():
        monkeypatch.setattr(gpu_run, "write_text_whole", full)
        run.measure([part("one", "done"), part("two", "done")], lambda *_: None)
        assert run.not_written is not None
        assert "cannot be written (No space left on device)" in run.not_written
        assert run.results.keys() == {"one", "two"}
        monkeypatch.undo()
        run.write()
    assert run.not_written is None
    monkeypatch.setattr(gpu_run, "write_text_whole", full)
    with (
        pytest.raises(InputError, match="No space left on device"),
        Run(tmp_path / "gpu.json", 1e6, {}).alone(),
    ):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"no folder for gpu\.json"),
        Run(tmp_path / "file/gpu.json", 1, {}).alone(),
    ):
        pass
