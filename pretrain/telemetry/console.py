"""Progress of a training for an operator: the newest step in one line, and events as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from pretrain.telemetry.progress import ProgressDisplay
from pretrain.telemetry.sinks import Record


class ConsoleSink:
    """A progress bar with the newest numbers; plain lines, at most one in ten seconds, in a log file."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        """Show progress towards `steps` optimiser steps."""
        self._console = console or Console()
        self._display = ProgressDisplay(self._console)
        self._display.start()
        self._bar = self._display.bar("train", steps)

    def write(self, record: Record) -> None:
        """Move the bar, or print an event above it."""
        if "event" in record:
            self._console.print(f"  {describe_event(record)}", highlight=False, markup=False, soft_wrap=True)
        else:
            self._bar.update(record["step"], detail=describe(record))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._display.stop()


def describe(record: Record) -> str:
    """A step in one line, most important numbers first; numbers that were not measured are left out."""
    parts = [f"loss {record['loss']:.3f}" if record.get("loss") is not None else "loss not finite"]
    for kind in ("action", "image"):
        if (loss := record.get(f"loss_{kind}")) is not None:
            parts.append(f"{kind} {loss:.3f} ({record[f'accuracy_{kind}']:.0%})")
    parts.append(f"{record['tokens_per_second']:,.0f} tok/s")
    parts.append(f"MFU {record['mfu']:.0%}")
    forms = {
        "step_time": "{:.3g} s/step",
        "gradient_norm": "norm {:.3g}",
        "action_l1": "L1 {:.3f}",
        "action_head_l1": "head L1 {:.3f}",
        "memory/device_reserved": "{:.1f} GB on GPU",
    }
    parts += [form.format(record[name]) for name, form in forms.items() if record.get(name) is not None]
    parts += [f"{what} {share:.0%}" for what, share in _shares(record).items() if share >= 0.01]
    if record.get("skipped_steps"):
        parts.append(f"{record['skipped_steps']} skipped")
    return " · ".join(parts)


def describe_event(record: Record) -> str:
    """An event as a sentence."""
    name, step = record["event"], record.get("step", 0)
    text = f"{name} at step {step}"
    if name == "validation":
        return f"{text}: {', '.join(_splits(record))} ({record['seconds']:.1f} s)"
    if name == "straggler":
        return (
            f"{text}: rank {record['rank']} on {record['host']} needs {record['seconds_above_median']:.3g} s "
            f"a step more than the median rank; it waits {record['data_wait']:.3g} s a step for data"
        )
    if name == "profile":
        return f"{text}: trace in {record['trace']}"
    if layouts := _layouts(record):
        return f"{text}{layouts}"
    details = [f"{key} {value}" for key, value in record.items() if key not in ("event", "step")]
    return f"{text}: {', '.join(details)}" if details else text


def _shares(record: Record) -> dict[str, float]:
    """Shares of a step that were spent waiting."""
    names, step_time = {"data": "data_wait", "peers": "peer_wait"}, record.get("step_time")
    return {what: (record.get(name) or 0.0) / step_time for what, name in names.items()} if step_time else {}


def _splits(record: Record) -> list[str]:
    """The losses of each split of a validation."""
    parts = []
    for split in sorted(name.removesuffix("/loss") for name in record if name.endswith("/loss")):
        kinds = [
            f"{kind} {loss:.3f}" for kind in ("action", "image") if (loss := record[f"{split}/loss_{kind}"])
        ]
        joined, loss = ", ".join(kinds), record[f"{split}/loss"]
        total = "no labels" if loss is None else f"loss {loss:.3f}"
        parts.append(f"{split} {total}{f' ({joined})' if joined else ''}")
    return parts


def _layouts(record: Mapping[str, Any]) -> str:
    """Layouts of the ranks before and now, if a record has them."""
    named = [
        f"tensor {layout['tensor']} x data {layout['data']}"
        for layout in (record.get("parallel_before"), record.get("parallel"))
        if layout
    ]
    if len(set(named)) < 2:
        return f" at {named[0]}" if named else ""
    return f": saved at {named[0]}, going on at {named[1]}"
