"""Signals of a command outside its training: they end it with one line, and do not disturb its end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """End the command on SIGTERM or SIGUSR1, with a line and exit code 128 + its number, for a `with` block.

    SystemExit leaves the main thread's code, so that what was opened is closed. Outside the main thread, and
    for a signal that has a handler already, nothing changes.
    """
    free = [number for number in _ENDING if _is_main_thread() and signal.getsignal(number) == signal.SIG_DFL]
    for number in free:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore ctrl-C, SIGTERM and SIGUSR1 for the length of a `with` block, which has to be finished."""
    numbers = (signal.SIGINT, *_ENDING) if _is_main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_message(number: int) -> str:
    """The line of a command that a signal has ended."""
    return f"ended by {signal.Signals(number).name}; the same command resumes from what is already written"


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{end_message(number)}\n".encode())  # a message may be under way, with its stream locked
    raise SystemExit(128 + number)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
