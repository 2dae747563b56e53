"""Calls of Ray in a thread are over before Ray is shut down; Ray itself is not started."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from cluster.resources import ray_use
from cluster.resources.ray_use import RayUse, SessionClosedError, ray_is_in_use
from tests.support.waiting import HANG_SECONDS, wait_until


@pytest.fixture(autouse=True)
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_use, "_unfinished", threading.Event())


def test_a_thread_that_waits_leaves_ray_when_the_session_closes() -> None:
    use, steps, ends = RayUse(), [], []

    def step(seconds: float) -> bool:
        steps.append(seconds)
        return False

    def wait() -> None:
        try:
            use.wait_for(step)
        except SessionClosedError as error:
            ends.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: len(steps) > 2)
    use.close()
    count = len(steps)
    thread.join(HANG_SECONDS)
    assert ends == ["Ray is being shut down"]
    assert len(steps) == count, "a step began after the close"
    assert set(steps) == {ray_use.STEP_SECONDS}
    assert not ray_is_in_use()


def test_closing_waits_for_the_call_that_is_under_way() -> None:
    use, inside, ended = RayUse(), threading.Event(), threading.Event()
    order: list[str] = []

    def call() -> None:
        with use.call():
            inside.set()
            ended.wait(HANG_SECONDS)
            order.append("call")

    caller = threading.Thread(target=call)
    caller.start()
    inside.wait(HANG_SECONDS)
    closer = threading.Thread(target=lambda: (use.close(HANG_SECONDS), order.append("closed")))
    closer.start()
    wait_until(lambda: use._closed)
    ended.set()
    closer.join(HANG_SECONDS)
    caller.join(HANG_SECONDS)
    assert order == ["call", "closed"]
    assert not ray_is_in_use()


def test_a_wait_ends_with_its_answer_or_its_time() -> None:
    use = RayUse()
    answers = iter([False, False, True])
    assert use.wait_for(lambda seconds: next(answers), timeout=HANG_SECONDS)
    waited: list[float] = []

    def never(seconds: float) -> bool:
        waited.append(seconds)
        threading.Event().wait(seconds)
        return False

    assert not use.wait_for(never, timeout=0.3)
    assert waited[0] == ray_use.STEP_SECONDS
    assert 0.0 < waited[-1] < ray_use.STEP_SECONDS
    assert not use.wait_for(never, timeout=-1.0)
    assert waited[-1] == 0.0


HANGING = """
import sys, threading
from cluster.cli import main as command
from cluster.resources.ray_use import RayUse

def run(arguments):
    use, inside = RayUse(), threading.Event()
    def hang():
        with use.call():
            inside.set()
            threading.Event().wait()
    threading.Thread(target=hang).start()  # no daemon: the interpreter would wait for it
    inside.wait()
    use.close(0.01)
    print("said")
    {end}

command._run_and_report = run
sys.exit(command.main([]))
"""


@pytest.mark.parametrize(("end", "code"), [("return 1", 1), ("raise SystemExit(143)", 143)])
def test_a_command_whose_thread_hangs_in_ray_ends_with_its_code_and_its_lines(end: str, code: int) -> None:
    program = HANGING.format(end=end)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "said\n", "")
