"""Runs parts, several at a time, each in a process of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from benchmarks.learning.parts import Part
from data.errors import InputError

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 60.0  # for a training to write its checkpoint before it is killed
_LOG_LINES = 8
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None
_ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Running:
    """A part whose process runs."""

    part: Part
    process: subprocess.Popen[bytes]
    began: float
    before: float  # seconds of earlier attempts


@dataclass
class Runner:
    """Runs parts as soon as those before them are done.

    Attributes:
        jobs: Parts at a time.
        show: Called with a line for people.
        clock: Seconds; rises.
    """

    jobs: int
    show: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    failed: dict[str, str] = field(default_factory=dict[str, str])
    _running: list[Running] = field(default_factory=list[Running])
    _signal: int | None = None

    def run(self, parts: Sequence[Part]) -> int | None:
        """Run parts to their end; one that fails holds up those after it alone.

        Args:
            parts: Each after the parts that it needs, none of them done.

        Returns:
            The signal that ended it early, if one did; else None. `failed` has the parts that failed, or
            could not begin, and why.

        Raises:
            OSError: A marker or a log cannot be written; parts that run are ended first.
        """
        waiting = list(parts)
        with self._signals():
            try:
                while self._signal is None and (waiting or self._running):
                    self._begin(waiting)
                    self._collect()
                    if self._running:
                        time.sleep(_POLL_SECONDS)
            finally:
                self._end_all()
        return self._signal

    def _begin(self, waiting: list[Part]) -> None:
        """Begin what may begin, and take it off `waiting`."""
        pending = {part.name for part in waiting} | {each.part.name for each in self._running}
        for part in list(waiting):
            needs = {need.name for need in part.needs}
            if broken := needs & self.failed.keys():
                waiting.remove(part)
                self._fail(part, f"needs {sorted(broken)[0]}, which failed")
            elif not needs & pending and self._has_room(part):
                waiting.remove(part)
                self._start(part)

    def _has_room(self, part: Part) -> bool:
        if any(each.part.alone for each in self._running):
            return False
        return not self._running if part.alone else len(self._running) < self.jobs

    def _start(self, part: Part) -> None:
        try:
            if part.state() == "changed":
                raise part.changed_error()
            marker = part.read_marker()
            before = float(marker["seconds"]) if marker else 0.0
            part.write_marker(done=False, seconds=before)
        except InputError as error:
            self._fail(part, str(error))
            return
        part.log.parent.mkdir(parents=True, exist_ok=True)
        threads = self.jobs if part.alone else 1
        with part.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *part.words],
                cwd=ROOT,
                env=_environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's ctrl-C reaches this process alone, which ends them
                preexec_fn=_end_with_parent,
            )
        self._running.append(Running(part, process, self.clock(), before))
        self.show(f"begun  {part.name}")

    def _collect(self) -> None:
        """Take note of the processes that have ended."""
        for each in list(self._running):
            status = each.process.poll()
            if status is None:
                continue
            self._running.remove(each)
            seconds = self.clock() - each.began
            each.part.write_marker(done=status == 0, seconds=each.before + seconds)
            if status == 0:
                self.show(f"done   {each.part.name} in {seconds:.0f} s")
            else:
                self._fail(each.part, f"status {status}; {each.part.log} ends with\n{_tail(each.part.log)}")

    def _fail(self, part: Part, reason: str) -> None:
        self.failed[part.name] = reason
        self.show(f"failed {part.name}: {reason}")

    def _end_all(self) -> None:
        """Ask the processes to end, and kill those that do not."""
        for each in self._running:
            each.process.terminate()
        end = self.clock() + _GRACE_SECONDS
        for each in self._running:
            try:
                each.process.wait(max(0.0, end - self.clock()))
            except subprocess.TimeoutExpired:
                os.killpg(each.process.pid, signal.SIGKILL)  # its session: it, and what it started
                each.process.wait()
            done = each.process.returncode == 0  # it ended by itself meanwhile
            each.part.write_marker(done, each.before + self.clock() - each.began)
            self.show(f"{'done ' if done else 'ended'}  {each.part.name}")
        self._running.clear()

    @contextmanager
    def _signals(self) -> Generator[None]:
        """Within the block these signals end the run; before and after they do what they did.

        One that is ignored, as by `nohup`, stays ignored.
        """

        def end(number: int, _: FrameType | None) -> None:
            self._signal = number

        heard = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, end) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_with_parent() -> None:
    """Let the process end by SIGTERM when the study is killed: the next one would run its part beside it."""
    if _LIBRARY is not None:
        _LIBRARY.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _environment(threads: int) -> Mapping[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def _tail(path: Path) -> str:
    return "\n".join(path.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:])
