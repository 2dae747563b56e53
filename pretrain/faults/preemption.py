"""Stop requests: a training is asked to end with a checkpoint by a signal, or by a file in its run folder.

A signal reaches the processes that Slurm or torchrun know. `worldvla train` receives it in a process of its
own, and its ranks run outside the main thread, where Python delivers no signals: it leaves a file instead.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_POLL_SECONDS = 1.0


class Preemption:
    """Watches for a stop request on one rank for the length of a `with` block; the ranks agree separately.

    Signals are caught in the main thread only, and repeatedly: schedulers and launchers send them more than
    once. SIGINT is left alone.

    Args:
        stop_file: File whose existence is a request; None: only signals are.
        polls: Whether this rank looks for the file at every step (one rank is enough) or only while it waits.
    """

    def __init__(self, stop_file: Path | None, polls: bool = True) -> None:
        self._stop_file, self._polls = stop_file, polls
        self._requested = False
        self._next_poll = 0.0
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def requested(self, waiting: bool = False) -> bool:
        """Whether this rank was asked to end; the file is looked for at most once a second.

        Args:
            waiting: Whether the rank is waiting, and so cannot learn it from the rank that polls.
        """
        if self._stop_file is None or self._requested or not (self._polls or waiting):
            return self._requested
        if time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + _POLL_SECONDS
            self._requested = self._stop_file.exists()
        return self._requested

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._requested:
            line = f"{signal.Signals(number).name}: a checkpoint follows at the next step boundary\n"
            os.write(2, line.encode())  # a log message may be under way, with its stream's buffer locked
        self._requested = True
