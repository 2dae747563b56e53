"""The parts common to all benchmarks: command line, timing, memory, the table and the JSON file.

Device, versions and commit are part of every result. Ratios are of measurements of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from data.files import write_text_whole

NOT_MEASURED = "not measured"
_WIDE = 200
_PACKAGES = ("torch", "deepspeed", "megatron-core", "transformers", "flash-attn", "flash-attn-4", "triton")
_ROOT = Path(__file__).resolve().parents[1]


def arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """Command line with the options that all benchmarks have.

    Args:
        name: Module name, for the usage line.
        description: The benchmark's docstring.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default, help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="smallest sizes: seconds, shows that it runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def environment(device: str) -> dict[str, Any]:
    """Machine, versions and commit of a measurement."""
    packages: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": packages,
        "commit": _commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the working tree, marked where files differ from it; None outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def free_port() -> int:
    """A free port of this machine for the rendezvous of a measurement's ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def seconds_of(function: Callable[[], object], device: str, repeats: int = 5, warmup: int = 2) -> float:
    """Median seconds of a call, the device's work included.

    Args:
        function: To time.
        device: `cpu` or `cuda`.
        repeats: Timed calls.
        warmup: Calls before them.
    """
    for _ in range(warmup):
        function()
    times: list[float] = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(function: Callable[[], object], device: str) -> int:
    """Peak of bytes allocated during a call, relative to its start.

    On a GPU torch's allocator counts; on the CPU torch's profiler records every allocation. The result of the
    call is included.
    """
    if device == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        _wait(device)
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = function()
    del result
    held = peak = 0
    # The profiler's own summaries have only totals; the peak needs each allocation and release.
    recorded: Any = profile.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table.

    Attributes:
        key: Of the value in a row.
        title: Above the column.
        unit: Below the title; empty for none.
        digits: After the decimal point.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 2


class Report:
    """Rows of measurements, targets to compare them with, and notes.

    Args:
        name: Of the benchmark.
        title: Above the table.
        columns: Of the table, in order.
        device: `cpu` or `cuda`.
        hidden: Keys of columns that are in the JSON file only.
        out: JSON file to rewrite whole after each row, so that a benchmark which is cut off leaves what it
            has measured, with `finished` false.
    """

    def __init__(
        self,
        name: str,
        title: str,
        columns: Sequence[Column],
        device: str,
        hidden: Sequence[str] = (),
        out: Path | None = None,
    ) -> None:
        self._name, self._title, self._columns, self._device = name, title, columns, device
        self._shown = [column for column in columns if column.key not in hidden]
        self._out = out
        self.rows: list[dict[str, Any]] = []
        self.targets: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def add(self, **values: Any) -> None:
        """One row; None is printed as "not measured".

        Raises:
            ValueError: A value has no column, or a column no value.
        """
        keys = {column.key for column in self._columns}
        if set(values) != keys:
            raise ValueError(f"row {sorted(values)}, expected {sorted(keys)}")
        self.rows.append(values)
        if self._out is not None:
            self._write(self._out, finished=False)

    def note(self, text: str) -> None:
        """A remark below the table."""
        self.notes.append(text)

    def target(self, text: str, met: bool | None, value: float | str | None) -> None:
        """A target, whether it was met (None: not measured here) and the measured value."""
        self.targets.append({"target": text, "met": met, "value": value})

    def finish(self, out: Path | None, console: Console | None = None) -> None:
        """Print the table and write the JSON file."""
        # A file or a pipe has no width: columns there are as wide as their content.
        self._print(console or Console(width=None if sys.stdout.isatty() else _WIDE))
        if out is not None:
            self._write(out, finished=True)

    def _write(self, out: Path, finished: bool) -> None:
        content = {
            "name": self._name,
            "title": self._title,
            "finished": finished,
            "units": {column.key: column.unit for column in self._columns},
            "environment": self._environment,
            "rows": self.rows,
            "targets": self.targets,
            "notes": self.notes,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(out, json.dumps(content, indent=1) + "\n")

    @cached_property
    def _environment(self) -> dict[str, Any]:
        return environment(self._device)

    def _print(self, console: Console) -> None:
        table = Table(title=self._title, title_justify="left")
        for column in self._shown:
            unit = f"\n[{column.unit}]" if column.unit else ""
            table.add_column(f"{column.title}{unit}".replace("[", r"\["), justify="right")
        for row in self.rows:
            table.add_row(*(_cell(row[column.key], column.digits) for column in self._shown))
        console.print(table)
        for target in self.targets:
            verdict = {True: "met", False: "missed", None: NOT_MEASURED}[target["met"]]
            value = "" if target["value"] is None else f" ({_cell(target['value'], 2)})"
            console.print(f"target: {target['target']}: {verdict}{value}", markup=False)
        for note in self.notes:
            console.print(f"note: {note}", markup=False)


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:,.{digits}f}" if isinstance(value, float) else str(value)
