"""Simulator processes end with the command, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from eval.demonstrations.worker_pool import WorkerPool
from tests.support.waiting import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from tests.unit.test_eval_demonstrations_worker_pool import map_forever; map_forever()"


def touch_and_sleep(path: str) -> None:
    Path(path).touch()
    time.sleep(2 * HANG_SECONDS)


def map_forever() -> None:
    # What runs in the background of a script is started with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with WorkerPool(2) as workers:
        list(workers.map(touch_and_sleep, [("first",), ("second",), ("third",)]))


def test_results_of_several_processes_are_in_order() -> None:
    with WorkerPool(2) as workers:
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
        while not all((tmp_path / name).exists() for name in ("first", "second")):
            assert process.poll() is None  # pytest's own time limit ends a command that never starts them
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        if to_group:  # as a terminal does with ctrl-C
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        stderr = process.communicate(timeout=HANG_SECONDS)[1]
        _, alive = psutil.wait_procs(children, timeout=HANG_SECONDS)
        assert alive == []
        assert stderr.count("Traceback") == (1 if to_group else 0)  # the command's own, none of a worker's
    finally:
        process.kill()


@pytest.mark.parametrize("started", [True, False])
def test_an_interruption_while_simulators_end_waits_for_none(started: bool) -> None:
    before = set(multiprocessing.active_children())
    workers = WorkerPool(2).__enter__()
    executor = workers._executor
    assert executor is not None
    if started:
        assert list(workers.map(divmod, [(7, 2), (7, 3)])) == [(3, 1), (2, 1)]
    shutdown = executor.shutdown

    def interrupted(wait: bool = True, *, cancel_futures: bool = False) -> None:
        executor.shutdown = shutdown  # type: ignore[method-assign]
        raise KeyboardInterrupt

    executor.shutdown = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        workers.__exit__(None, None, None)
    assert set(multiprocessing.active_children()) <= before
