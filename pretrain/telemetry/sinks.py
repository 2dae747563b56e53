"""Where metrics go: `metrics.jsonl`, the console, Weights & Biases.

A record is one JSON object: a step (`{"step": 7, "loss": ...}`) or an event (`{"event": "resumed",
"step": 5, ...}`). Rank 0 writes the file; whoever shows them (the supervisor, or `pretrain.main` under
torchrun) reads it back with `MetricsTail`, so that training never waits for a display.
"""

from __future__ import annotations

import json
import netrc
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.errors import InputError
from pretrain.config import TelemetryConfig

Record = Mapping[str, Any]
WANDB_MODES = ("auto", "online", "offline", "disabled")


class Sink(Protocol):
    """Takes records as they come."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Finish; nothing is written afterwards."""
        ...


class JsonlSink:
    """Appends records to `metrics.jsonl`, each line complete as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a `metrics.jsonl`; an empty list when there is none."""
    return MetricsTail(path).new()


def drop_after(path: Path, step: int) -> int:
    """Cut the lines of steps beyond `step` off a `metrics.jsonl` and return how many they were.

    The file is shortened in place, so that a reader of its end sees that it shrank.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = next((i for i, line in enumerate(lines) if _step_of(line) > step), len(lines))
    os.truncate(path, sum(map(len, lines[:kept])))
    return len(lines) - kept


def _step_of(line: bytes) -> float:
    """The step of a line; a line that was cut short or torn counts as beyond every step."""
    try:
        return json.loads(line).get("step", 0) if line.endswith(b"\n") else float("inf")
    except ValueError:  # not JSON, or not even text
        return float("inf")


class MetricsTail:
    """Reads what was appended to a `metrics.jsonl` since the last look."""

    def __init__(self, path: Path, from_end: bool = False) -> None:
        """Follow `path`, which need not exist yet; `from_end` passes over what it holds now."""
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def new(self) -> list[dict[str, Any]]:
        """Records of the complete lines appended since; a half-written line waits for the next look."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            self._offset = min(self._offset, size)  # a resume shortened the file; the rest was given
            file.seek(self._offset)
            text = file.read(size - self._offset)
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


class ConsoleSink:
    """A progress bar with the newest numbers."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        """Show progress towards `steps` optimiser steps."""
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("starting", total=steps)
        self._progress.start()

    def write(self, record: Record) -> None:
        """Move the bar, or print an event above it."""
        if event := record.get("event"):
            details = " ".join(f"{key}={value}" for key, value in record.items() if key != "event")
            self._progress.console.print(f"{event}: {details}", highlight=False)
        else:
            self._progress.update(self._task, completed=record["step"], description=describe(record))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


def describe(record: Record) -> str:
    """One line about a step's record."""
    parts = [f"loss {record['loss']:.3f}"]
    for kind in ("action", "image"):
        if record.get(f"loss_{kind}") is not None:
            parts.append(f"{kind} {record[f'loss_{kind}']:.3f} ({record[f'accuracy_{kind}']:.0%})")
    parts.append(f"{record['tokens_per_second']:,.0f} tok/s")
    parts.append(f"MFU {record['mfu']:.0%}")
    return " · ".join(parts)


class WandbSink:
    """One W&B run per run folder: after a restart the same run goes on."""

    def __init__(self, folder: Path, name: str, settings: TelemetryConfig, config: Mapping[str, Any]) -> None:
        """Open the run.

        Args:
            folder: Run folder; files go to its `wandb/`, the run's id to `wandb/run_id`.
            name: Name shown.
            settings: Mode and project.
            config: The run's settings, for W&B's table.

        Raises:
            InputError: Unknown mode.
        """
        import wandb  # seconds of import: only where it is used

        os.environ.setdefault("WANDB_SILENT", "true")
        id_file = folder / "wandb" / "run_id"
        id_file.parent.mkdir(parents=True, exist_ok=True)
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        identity = id_file.read_text().strip()
        _await_new_second(id_file.parent, identity)
        self._run = wandb.init(
            dir=str(folder),
            project=settings.project,
            name=name,
            id=identity,
            resume="allow",
            mode=_wandb_mode(settings.wandb),
            config=dict(config),
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Record) -> None:
        """Log a step's numbers under `train/`; events carry no curve and are left to the other sinks."""
        if "event" not in record:
            numbers = {f"train/{key}": value for key, value in record.items() if key != "step"}
            self._run.log({"step": record["step"], **numbers})

    def log(self, step: int, values: Mapping[str, float | Path]) -> None:
        """Log numbers and files under their own names at a step: `.mp4` and `.gif` as video, else picture."""
        self._run.log({"step": step, **{name: _media(value) for name, value in values.items()}})

    def close(self) -> None:
        """Finish the run; its files are complete afterwards."""
        self._run.finish()


def _await_new_second(folder: Path, identity: str) -> None:
    """Wait, a second at most, until W&B's folder gets a name of its own.

    W&B names it by run and second: a run that went on within the second would write over what it has.
    """
    while any(folder.glob(f"*run-{time.strftime('%Y%m%d_%H%M%S')}-{identity}")):
        time.sleep(0.02)


def _media(value: float | Path) -> Any:
    import wandb

    if not isinstance(value, Path):
        return value
    if value.suffix in (".mp4", ".gif"):
        return wandb.Video(str(value))
    return wandb.Image(str(value))


def _wandb_mode(mode: str) -> Any:
    """W&B's own mode: `auto` follows WANDB_MODE, else is online when a key is found."""
    if mode not in WANDB_MODES:
        raise InputError(
            f"telemetry.wandb={mode!r}, expected one of {', '.join(WANDB_MODES)}; correct the setting"
        )
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
