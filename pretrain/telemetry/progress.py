"""Progress bars of every command; without a terminal they become plain lines."""

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
_SPEED_WINDOW_SECONDS = 30.0


class SpeedEstimate:
    """Speed over the last half minute and the remaining time, as text beside a progress bar.

    Args:
        unit: What is counted.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, done: int, total: int) -> str:
        """Record that `done` of `total` are done.

        Returns:
            The text: `episodes, 3.1/s, 2 min left`.
        """
        now = monotonic()
        self._samples.append((now, done))
        while now - self._samples[0][0] > _SPEED_WINDOW_SECONDS and len(self._samples) > 2:
            self._samples.popleft()
        start, advanced = self._samples[0][0], done - self._samples[0][1]
        if advanced <= 0 or now == start:
            return self._unit
        rate = advanced / (now - start)
        seconds = (total - done) / rate
        remaining = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return f"{self._unit}, {rate:.1f}/s, {remaining} left"


class ProgressBar:
    """One line of a `ProgressDisplay`."""

    def __init__(self, display: ProgressDisplay, label: str, total: int | None, done: int) -> None:
        self._display, self._label = display, label
        self._task: TaskID = display.live.add_task(label, total=total, completed=done, detail="")
        self._last_line_at = float("-inf")
        self._last_shown: tuple[int, str] | None = None

    def update(self, done: int, total: int | None = None, detail: str = "") -> None:
        """Show that `done` of `total` are done (None: total unchanged), and a short text beside it."""
        self._display.live.update(self._task, completed=done, detail=detail)
        if total is not None:
            self._display.live.update(self._task, total=total)
        if self._display.plain:
            self._print_line(done, detail)

    def _print_line(self, done: int, detail: str) -> None:
        tasks = self._display.live.tasks
        total = next(task.total for task in tasks if task.id == self._task)
        complete = total is not None and done >= total
        now = monotonic()
        due = complete or now - self._last_line_at >= _SECONDS_BETWEEN_LINES
        if not due or self._last_shown == (done, detail):
            return
        self._last_line_at, self._last_shown = now, (done, detail)
        count = f"{done}" if total is None else f"{done}/{total:.0f}"
        line = f"  {self._label} {count} {detail}".rstrip()
        self._display.console.print(line, highlight=False, markup=False, soft_wrap=True)


class ProgressDisplay:
    """Several progress bars below each other, shown for the length of a `with` block.

    On a terminal they are drawn in place; elsewhere each prints a line at most every ten seconds and one at
    its end.
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
            TextColumn("[dim]{task.fields[detail]}"),
            console=console,
            disable=self.plain,
            refresh_per_second=4,
        )

    def __enter__(self) -> ProgressDisplay:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to draw."""
        self.live.start()

    def stop(self) -> None:
        """Leave the bars as they are."""
        self.live.stop()

    def bar(self, label: str, total: int | None = None, done: int = 0) -> ProgressBar:
        """Add a bar; `total` None: not known yet; `done` counts as done before and not towards the speed."""
        return ProgressBar(self, label, total, done)
