"""Simulator processes end with the command, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from eval.demonstrations.workers import Workers

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from tests.unit.test_eval_demonstrations_workers import work; work()"


def stay(place: str) -> None:
    Path(place).touch()
    time.sleep(600)


def work() -> None:
    with Workers(2) as workers:
        list(workers.map(stay, [("first",), ("second",), ("third",)]))


def test_results_come_in_order_from_several_processes() -> None:
    with Workers(2) as workers:
        assert list(workers.map(divmod, [(7, n) for n in (1, 2, 3, 4)])) == [
            divmod(7, n) for n in (1, 2, 3, 4)
        ]


@pytest.mark.parametrize(
    ("number", "to_group"), [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_no_simulator_outlives_the_command(number: signal.Signals, to_group: bool, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 60
        while not all((tmp_path / name).exists() for name in ("first", "second")):
            assert process.poll() is None
            assert time.monotonic() < end, "the workers did not start"
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        if to_group:  # as a terminal does with ctrl-C
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        shown = process.communicate(timeout=20)[1]
        _, left = psutil.wait_procs(children, timeout=10)
        assert left == []
        assert shown.count("Traceback") == (1 if to_group else 0)  # the command's own, none of a worker
    finally:
        process.kill()
