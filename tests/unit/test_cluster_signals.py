"""Signals outside a training."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from cluster.signals import exit_on_signals, signals_ignored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_command_with_a_line(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_signals():
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    shown = capfd.readouterr().err
    assert shown == f"ended by {number.name}; the same command resumes from what is already written\n"
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_handler_of_the_caller_stays() -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with exit_on_signals():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_closing_is_not_disturbed() -> None:
    before = signal.getsignal(signal.SIGINT)
    with signals_ignored():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_nothing_changes() -> None:
    handlers = []

    def body() -> None:
        with exit_on_signals(), signals_ignored():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
