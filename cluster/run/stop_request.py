"""A stop request: a signal to `worldvla train` makes its ranks write a checkpoint and end.

Ray's processes do not receive the signals of the command, so the request is a file in the run folder, which
rank 0 checks between steps (`pretrain.faults.preemption`).
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cluster.signals import end_message
from pretrain.faults.preemption import SIGNALS


class StopRequest:
    """Request to the ranks to stop, made by a signal to the command or by the command itself.

    Args:
        file: Its existence requests the ranks to stop.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._signalled = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether a signal has requested the command to stop."""
        return self._signalled.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for a signal, at most so long; return whether one has arrived."""
        return self._signalled.wait(seconds)

    def request(self) -> None:
        """Request the ranks to write a checkpoint and end; the command itself continues."""
        self._file.touch()

    def cancel(self) -> None:
        """Withdraw the request, so that ranks started from now on train; no effect after a signal."""
        if not self.requested:
            self._file.unlink(missing_ok=True)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second SIGTERM ends the command at once."""
        name = signal.Signals(number).name
        if self.requested and number == signal.SIGTERM:
            print(end_message(number), file=sys.stderr)
            sys.exit(128 + number)
        if not self.requested:
            print(f"{name}: a checkpoint follows at the next step boundary", file=sys.stderr, flush=True)
        self._signalled.set()
        self.request()


@contextmanager
def stop_on_signals(file: Path) -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a stop request for the length of a `with` block.

    Outside the main thread Python delivers no signals, so that none is handled. The file of an earlier
    request is removed first, and the file of this one at the end.

    Args:
        file: Requests the ranks to stop (`RunFolder.stop_request`).
    """
    file.unlink(missing_ok=True)
    stop = StopRequest(file)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, stop.on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        file.unlink(missing_ok=True)
