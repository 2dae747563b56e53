"""Signals to the command become a file that the ranks look for."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from cluster.run.stop_request import signals_passed_on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_the_ranks_and_a_second_term_ends_the_command(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request, before = tmp_path / ".stop", signal.getsignal(number)
    request.touch()  # of an earlier start
    with signals_passed_on(request) as wish:
        assert not request.exists()
        assert not wish.wait(0)
        os.kill(os.getpid(), number)
        assert wish.wait(10)
        assert request.exists()
        os.kill(os.getpid(), signal.SIGUSR1)  # schedulers repeat themselves
        wish.take_back()
        assert request.exists()
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.count("a checkpoint follows") == 1
    assert not request.exists()
    assert signal.getsignal(number) == before


def test_the_command_may_ask_for_itself_and_take_it_back(tmp_path: Path) -> None:
    with signals_passed_on(tmp_path / ".stop") as wish:
        wish.ask()
        assert (tmp_path / ".stop").exists()
        assert not wish.asked
        wish.take_back()
        assert not (tmp_path / ".stop").exists()


def test_outside_the_main_thread_no_signal_is_caught(tmp_path: Path) -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def body() -> None:
        with signals_passed_on(tmp_path / ".stop"):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert inside == [before]
