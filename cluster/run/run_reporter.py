"""What the supervisor reports of a run: console, W&B and `events.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.run_folder import RunFolder
from pretrain.telemetry.console import describe, describe_event
from pretrain.telemetry.events import EventLog
from pretrain.telemetry.progress import ProgressBar, ProgressDisplay
from pretrain.telemetry.sinks import MetricsTail
from pretrain.telemetry.wandb_sink import WandbSink


class RunReporter:
    """Reports the metrics that the ranks write, and events of the supervisor.

    Args:
        folder: Of the run.
        display: Where progress is shown.
        wandb: The run in W&B.
        first_step: Step that the training starts from.
        last_step: Step at which it ends.
    """

    def __init__(
        self, folder: RunFolder, display: ProgressDisplay, wandb: WandbSink, first_step: int, last_step: int
    ) -> None:
        self._display, self._wandb = display, wandb
        self._metrics = MetricsTail(folder.metrics, from_end=True, skip_damaged=True)
        self._events = EventLog(folder.events)
        self._first_step = first_step
        self._bar = display.bar("train", last_step, first_step)

    def starting(self, ranks: int) -> None:
        """Show that the training processes are being started."""
        self._bar.update(self._first_step, detail=f"starting {ranks} processes")

    def forward_metrics(self) -> None:
        """Show what the ranks have written to `metrics.jsonl` since the last call, and send it to W&B."""
        self._events.write_kept()
        for record in self._metrics.new():
            self._show(record)

    def event(self, record: dict[str, Any]) -> None:
        """Write an event of the supervisor to `events.jsonl`, show it and send it to W&B.

        A disk that is full does not end the run: the line follows when there is room.
        """
        self._events.write_or_keep(record)
        self._show(record)

    def log_event(self, record: dict[str, Any]) -> None:
        """Write an event to `events.jsonl` alone."""
        self._events.write_or_keep(record)

    def log_values(self, step: int, values: dict[str, float | Path]) -> None:
        """Send numbers, videos and pictures of a step to W&B."""
        self._wandb.log(step, values)

    def line(self, text: str) -> None:
        """Print a line above the progress bars."""
        self._display.console.print(f"  {text}", markup=False)

    def bar(self, label: str) -> ProgressBar:
        """Add a progress bar whose total is not known yet."""
        return self._display.bar(label)

    def _show(self, record: dict[str, Any]) -> None:
        self._wandb.write(record)
        if "event" in record:
            self.line(describe_event(record))
        else:
            self._bar.update(record["step"], detail=describe(record))
