"""What a command shows: headings, and progress bars that become plain lines where there is no terminal."""

from __future__ import annotations

from collections import deque
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0
_PACE_SECONDS = 30.0


def make_console(stderr: bool = False) -> Console:
    """The console of a command; `stderr` keeps standard output free for `--json`."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


class Pace:
    """Speed over the last half minute, and the time that is left at it, as a note beside a bar.

    Args:
        unit: What is counted.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, done: int, total: int) -> str:
        """Take down how far the work is, and say it: `episodes, 3.1/s, 2 min left`."""
        now = monotonic()
        self._seen.append((now, done))
        while now - self._seen[0][0] > _PACE_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        before, advanced = self._seen[0][0], done - self._seen[0][1]
        if advanced <= 0 or now == before:
            return self._unit
        rate = advanced / (now - before)
        left = (total - done) / rate
        clock = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        return f"{self._unit}, {rate:.1f}/s, {clock} left"


class Bar:
    """One line of a `Board`."""

    def __init__(self, board: Board, label: str, total: int | None, done: int) -> None:
        self._board, self._label = board, label
        self._task: TaskID = board.live.add_task(label, total=total, completed=done, note="")
        self._last_line = 0.0
        self._shown: tuple[int, str] | None = None

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show that `done` of `total` are done (None: total unchanged), and a short note beside it."""
        self._board.live.update(self._task, completed=done, note=note)
        if total is not None:
            self._board.live.update(self._task, total=total)
        if self._board.plain:
            self._print(done, note)

    def _print(self, done: int, note: str) -> None:
        total = self._board.live.tasks[self._board.live.task_ids.index(self._task)].total
        finished = total is not None and done >= total
        due = monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or finished
        if not due or self._shown == (done, note):
            return
        self._last_line, self._shown = monotonic(), (done, note)
        count = f"{done}" if total is None else f"{done}/{total:.0f}"
        self._board.console.print(f"  {self._label} {count} {note}".rstrip())


class Board:
    """Several progress bars below each other, shown for the length of a `with` block.

    On a terminal they are drawn in place; elsewhere each writes a line every ten seconds and at its end.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plain = not console.is_terminal
        self.live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=self.plain,
            refresh_per_second=4,
        )

    def __enter__(self) -> Board:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def bar(self, label: str, total: int | None = None, done: int = 0) -> Bar:
        """Add a bar; `total` None: not known yet; `done` earlier counts for no speed."""
        return Bar(self, label, total, done)
