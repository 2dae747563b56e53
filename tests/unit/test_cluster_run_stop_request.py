"""Signals to the command become a file that the ranks check."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from cluster.run.stop_request import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_requests_the_ranks_to_stop_and_a_second_sigterm_ends_the_command(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = tmp_path / ".stop", signal.getsignal(number)
    file.touch()  # of an earlier start
    with stop_on_signals(file) as stop:
        assert not file.exists()
        assert not stop.wait(0)
        os.kill(os.getpid(), number)
        assert stop.wait(10)
        assert file.exists()
        os.kill(os.getpid(), signal.SIGUSR1)  # schedulers repeat signals
        stop.cancel()
        assert file.exists()
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.count("a checkpoint follows") == 1
    assert not file.exists()
    assert signal.getsignal(number) == before


def test_the_command_can_request_a_stop_itself_and_cancel_it(tmp_path: Path) -> None:
    with stop_on_signals(tmp_path / ".stop") as stop:
        stop.request()
        assert (tmp_path / ".stop").exists()
        assert not stop.requested
        stop.cancel()
        assert not (tmp_path / ".stop").exists()


def test_outside_the_main_thread_no_signal_is_handled(tmp_path: Path) -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def body() -> None:
        with stop_on_signals(tmp_path / ".stop"):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert inside == [before]
