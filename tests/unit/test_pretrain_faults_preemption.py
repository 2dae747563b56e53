"""A stop request arrives by signal or by file, and no handler is left behind."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from pretrain.faults.preemption import Preemption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_repeated_signals_are_one_request(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with Preemption(None) as preemption:
        assert not preemption.requested()
        for _ in range(2):
            signal.raise_signal(number)
        assert preemption.requested()
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("a checkpoint follows at the next step boundary") == 1


def test_a_file_is_a_request_even_outside_the_main_thread(tmp_path: Path) -> None:
    request = tmp_path / "stop"
    request.touch()
    answers: list[bool] = []

    def look() -> None:
        with Preemption(request) as first, Preemption(request, polls=False) as other:
            answers.extend([first.requested(), other.requested()])
            answers.extend([other.requested(waiting=True), other.requested()])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert answers == [True, False, True, True]
    assert signal.getsignal(signal.SIGTERM) is before
