"""A signal to `worldvla train` becomes a wish that its ranks hear: a checkpoint, then the end.

Ray's processes do not get the signals of the command, so the wish travels as a file in the run folder, which
rank 0 looks for between steps (`pretrain.faults.preemption`).
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pretrain.faults.preemption import SIGNALS


class WishToEnd:
    """Whether the command was asked to end.

    Args:
        request: File that asks the ranks.
    """

    def __init__(self, request: Path) -> None:
        self._request = request
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until a signal comes, or so long; whether one has come."""
        return self._asked.wait(seconds)

    def ask(self) -> None:
        """Ask the ranks for a checkpoint and their end; the command itself goes on."""
        self._request.touch()

    def take_back(self) -> None:
        """Ask no longer: ranks that start from now on train on. Not after a signal."""
        if not self.asked:
            self._request.unlink(missing_ok=True)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second SIGTERM ends the command at once."""
        name = signal.Signals(number).name
        if self.asked and number == signal.SIGTERM:
            print(f"ended by {name}; the same command goes on from what is already written", file=sys.stderr)
            sys.exit(128 + number)
        if not self.asked:
            print(f"{name}: a checkpoint follows at the next step boundary", file=sys.stderr, flush=True)
        self._asked.set()
        self.ask()


@contextmanager
def signals_passed_on(request: Path) -> Iterator[WishToEnd]:
    """Turn SIGTERM and SIGUSR1 into the wish for the length of a `with` block.

    Outside the main thread, where Python hears no signals, nobody can ask. The file of an earlier wish is
    removed first, and the file of this one at the end.

    Args:
        request: File that asks the ranks (`RunFolder.stop_request`).
    """
    request.unlink(missing_ok=True)
    wish = WishToEnd(request)
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.signal(number, wish.hear) for number in SIGNALS}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        request.unlink(missing_ok=True)
