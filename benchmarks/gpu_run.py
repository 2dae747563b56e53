"""Runs the parts of `benchmarks.gpu` one after the other within a time, and keeps what each had written."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import Part, allowance
from data.errors import InputError
from data.files import write_text_whole

RUNNING, DONE, FAILED, ENDED = "running", "done", "failed", "ended at its limit"
SKIPPED, CUT_OFF = "skipped", "cut off"
RESERVE_SECONDS = 10.0  # of the whole, to end the last part and to write the table
_GRACE_SECONDS = 4.0  # between asking a part to end and killing it
_POLL_SECONDS = 0.5
_LOG_LINES, _LINE_LENGTH = 60, 300
_ROOT = Path(__file__).resolve().parents[1]
# A part's standard input is a pipe that this process alone holds open: what ends it ends the part's session.
_GUARDED = 'exec 3<&0 </dev/null; (cat <&3 >/dev/null 2>&1; kill -KILL 0) & exec "$@" 3<&-'
_VARIABLES = {
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "4",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}


class CutOffError(BaseException):
    """A signal asks the whole to end. Not an `Exception`: nothing but the runner takes it.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class Outcome:
    """What became of a part.

    Attributes:
        state: `running`, `done`, `failed`, `ended at its limit`, `cut off` or `skipped`.
        seconds: That it took.
        limit: Seconds that it had.
        reason: Why it failed, was ended or skipped, in one line.
        log: Last lines of its output, unless it is done.
        result: JSON that it wrote, also where it was ended before it had measured everything.
    """

    state: str
    seconds: float = 0.0
    limit: float | None = None
    reason: str | None = None
    log: Sequence[str] = ()
    result: dict[str, Any] | None = None


@dataclass
class Run:
    """The whole, with the file that is rewritten whenever something new is known.

    Attributes:
        out: `gpu.json`.
        seconds: That all parts may take together.
        environment: Variables of the parts besides this process's.
        clock: Seconds; rises.
    """

    out: Path
    seconds: float
    environment: Mapping[str, str]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.goals: list[dict[str, Any]] = []
        self.not_written: str | None = None
        self._start = self.clock()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Take the folder for the length of a `with` block, with the outcomes that are in it.

        Raises:
            InputError: It cannot be made or written, another run uses it, or its file is of something else.
        """
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.out.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise InputError(
                f"{self.out.parent}: no folder for {self.out.name} ({error.strerror})"
            ) from error
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.out.parent}: another run is measuring into it") from None
            self.outcomes = earlier_outcomes(self.out)
            self.write()
            if self.not_written is not None:
                raise InputError(self.not_written)
            yield
        finally:
            os.close(folder)

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """What the parts have written, by name."""
        return {name: each.result for name, each in self.outcomes.items() if each.result is not None}

    def measure(self, parts: Sequence[Part], show: Callable[[str, Outcome], None]) -> int | None:
        """Run the parts; returns the number of the signal that cut it off, if one did.

        Args:
            parts: In their order. One that an earlier run has measured is measured again.
            show: Called with name and outcome when a part has ended, or was not begun for want of time.
        """
        for part in parts:
            self.outcomes.setdefault(part.name, Outcome(SKIPPED, reason="not begun"))
        self.write()
        with tempfile.TemporaryDirectory(prefix="benchmarks-gpu-") as folder:
            for part in parts:
                left = self.seconds - RESERVE_SECONDS - (self.clock() - self._start)
                limit = allowance(part, left)
                if limit is None:
                    reason = f"{max(left, 0):.0f} s were left, it takes {min(part.least, part.most):.0f}"
                    skipped = Outcome(SKIPPED, reason=reason)
                    if self.outcomes[part.name].state == SKIPPED:  # else an earlier run has measured it
                        self.outcomes[part.name] = skipped
                    show(part.name, skipped)
                    continue
                outcome = self.outcomes[part.name] = Outcome(RUNNING, limit=round(limit, 1))
                try:
                    self._run(part, limit, outcome, Path(folder))
                except CutOffError as cut:
                    outcome.state, outcome.reason = CUT_OFF, f"{cut} came"
                    return cut.number
                finally:
                    self.write()
                    show(part.name, outcome)
        return None

    def write(self, finished: bool = False) -> None:
        """Rewrite the file; where it cannot be written `not_written` says why, and measuring goes on."""
        content = {
            "name": "gpu",
            "finished": finished,
            "seconds": round(self.clock() - self._start, 1),
            "parts": {name: asdict(outcome) for name, outcome in self.outcomes.items()},
            "goals": self.goals,
        }
        try:
            write_text_whole(self.out, json.dumps(content, indent=1) + "\n")
            self.not_written = None
        except OSError as error:
            reason = error.strerror or str(error)
            self.not_written = f"{self.out}: cannot be written ({reason}); what is printed is all there is"

    def _run(self, part: Part, limit: float, outcome: Outcome, folder: Path) -> None:
        written, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
        words = ["/bin/sh", "-c", _GUARDED, "sh", sys.executable, "-m", *part.words, "--out", str(written)]
        environment = _VARIABLES | dict(os.environ) | dict(self.environment)
        start, seen = self.clock(), 0
        with log.open("wb") as output:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=_ROOT,
                env=environment,
                start_new_session=True,
            )
        try:
            self.write()
            while _still_runs(process) and self.clock() - start < limit:
                changed = written.stat().st_mtime_ns if written.is_file() else 0
                if changed != seen:
                    seen, outcome.result = changed, _read(written)
                    self.write()
            ended = process.poll() is None
        finally:
            _end(process)
            outcome.seconds = round(self.clock() - start, 1)
            outcome.result = _read(written)
            outcome.log = _last_lines(log)
        outcome.state = ENDED if ended else FAILED if process.returncode else DONE
        if ended:
            outcome.reason = f"{part.name} did not end within {limit:.0f} s"
        elif process.returncode:
            outcome.reason = (
                f"exit status {process.returncode}: {outcome.log[-1] if outcome.log else 'no output'}"
            )
        else:
            outcome.log = ()


def _still_runs(process: subprocess.Popen[bytes]) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(_POLL_SECONDS)
    return process.poll() is None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the part with every process that it has started: its own session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _last_lines(path: Path) -> list[str]:
    lines = path.read_text("utf-8", "replace").splitlines()
    return [line[:_LINE_LENGTH] for line in lines[-_LOG_LINES:] if line.strip()]


def earlier_outcomes(path: Path) -> dict[str, Outcome]:
    """What an earlier run has left in its file, by part; none if there is no file.

    Raises:
        InputError: It is not a file of `benchmarks.gpu`.
    """
    if not path.is_file():
        return {}
    try:
        parts = json.loads(path.read_text("utf-8"))["parts"]
        outcomes = {name: Outcome(**fields) for name, fields in parts.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a result of this command; remove it, or give another out=") from error
    for outcome in outcomes.values():
        if outcome.state == RUNNING:
            outcome.state, outcome.reason = CUT_OFF, "its run was killed"
    return outcomes
