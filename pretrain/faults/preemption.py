"""Whether a training was asked to end with a checkpoint: by a signal, or by a file in its run folder.

A signal reaches the processes that Slurm or torchrun know. `worldvla train` gets it in a process of its own,
and its ranks run outside the main thread, where Python hears no signals: it leaves a file instead.
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
_SECONDS_BETWEEN_LOOKS = 1.0


class Preemption:
    """Listens on one rank for the length of a `with` block; the ranks still have to agree.

    The signals are caught in the main thread only, and as often as they come: schedulers and launchers send
    them more than once. SIGINT stays what it is.

    Args:
        request: File that asks; None: this rank does not look for it.
        always: Whether this rank looks for it at every step (one rank is enough) and not only where it waits.
    """

    def __init__(self, request: Path | None, always: bool = True) -> None:
        self._request, self._always = request, always
        self._asked = False
        self._next_look = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def asked(self, waiting: bool = False) -> bool:
        """Whether this rank was asked to end; the file is looked for at most once a second.

        Args:
            waiting: Whether the rank waits for something, and so cannot hear from the one that always looks.
        """
        if self._request is None or self._asked or not (self._always or waiting):
            return self._asked
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
            self._asked = self._request.exists()
        return self._asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            line = f"{signal.Signals(number).name}: a checkpoint follows at the next step boundary\n"
            os.write(2, line.encode())  # a print may be under way: its buffer is locked
        self._asked = True
