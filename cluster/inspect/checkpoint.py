"""Which checkpoints there are, and whether every file is as it was written."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from data.errors import InputError
from pretrain.checkpoint.location import CheckpointLocation, open_checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.retention import success_rates
from pretrain.checkpoint.verification import find_damage, find_table_damage
from pretrain.checkpoint_metadata import settings_section
from pretrain.policy_settings import POLICY_METADATA
from pretrain.run_layout import READY, RunLayout
from pretrain.settings import read_yaml

MEGABYTE = 1_000_000
_MAX_THREADS = 4


def is_checkpoint(path: str) -> bool:
    """Whether a folder or URL is one committed checkpoint."""
    return open_checkpoint(path).exists(READY)


def read_checkpoint(url: str) -> dict[str, Any]:
    """A committed checkpoint according to its manifest, as `--json` prints it.

    Raises:
        InputError: The manifest is missing or damaged.
    """
    manifest = Manifest.read(open_checkpoint(url))
    return {
        "path": url,
        "step": manifest.step,
        "complete": True,
        "tensors": len(manifest.tensors),
        "values": sum(math.prod(tensor.shape) for tensor in manifest.tensors.values()),
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "only_weights": manifest.only_weights,
        "ema": None if manifest.average is None else asdict(manifest.average),
        "dtypes": dict(Counter(tensor.dtype for tensor in manifest.tensors.values())),
        "imported": manifest.metadata.get("imported"),
        "action_head": settings_section(manifest.metadata, "model").get("action_head"),
        "policy": manifest.metadata.get(POLICY_METADATA),
        "parallel": settings_section(manifest.metadata, "parallel") or None,
    }


def list_checkpoints(path: str) -> tuple[str, list[dict[str, Any]]]:
    """The checkpoints of a run, of a folder or of an object store.

    Args:
        path: A run's folder, or a folder or URL of checkpoints.

    Returns:
        Their location, and one row per step, ascending: as `read_checkpoint`, with `success_rate` of its
        evaluation; incomplete and damaged ones have only `path`, `step`, `complete`, `damaged` and
        `set_aside` (`DAMAGED` or `SUPERSEDED`: the name that its READY has now).

    Raises:
        InputError: No checkpoint there.
    """
    checkpoints, evaluations = _locate(path)
    steps = checkpoints.scan()
    if not steps:
        raise InputError(
            f"{path}: no committed checkpoint there; name a run's folder, a folder or URL with "
            "step_... in it, or one of those"
        )
    rates = success_rates(evaluations)
    rows: list[dict[str, Any]] = []
    for step, complete in steps.items():
        row: dict[str, Any] = {"path": checkpoints.checkpoint_url(step), "step": step, "complete": complete}
        if complete:
            try:
                row |= read_checkpoint(checkpoints.checkpoint_url(step))
            except InputError as error:
                row["damaged"] = [str(error)]
        else:
            row["set_aside"] = checkpoints.set_aside_as(step)
        rows.append(row | {"success_rate": rates.get(step)})
    return checkpoints.url, rows


def verify_checkpoint(row: dict[str, Any], on_bytes: Callable[[int], None]) -> None:
    """Compare every file with its checksum, and the chunk table with the manifest.

    Sets `damaged` (what is wrong, in lines) and `verified`.

    Args:
        row: Of `read_checkpoint`.
        on_bytes: Called with the size of each file that was read.
    """
    store = open_checkpoint(row["path"])
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    manifest = Manifest.read(store)
    row["damaged"] = find_damage(store, manifest.files, threads, on_bytes)
    row["damaged"] += find_table_damage(store, manifest, row["damaged"])
    row["verified"] = not row["damaged"]


def damages(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with the checkpoints, each line with its path."""
    lines: list[str] = []
    for row in rows:
        for line in row.get("damaged", ()):
            lines.append(f"{row['path']}: damaged: {line}" if "bytes" in row else line)
    return lines


def _locate(path: str) -> tuple[CheckpointLocation, Path | None]:
    """Location of the checkpoints, and folder of their run's evaluations if it is known."""
    folder = Path(path)
    run, parent = RunLayout(folder), RunLayout(folder.resolve().parent)
    if "://" not in path and run.config.is_file():
        url = (read_yaml(run.config).get("checkpointing") or {}).get("url")
        return CheckpointLocation(url or run.checkpoints), run.evaluations
    if "://" not in path and parent.config.is_file():
        return CheckpointLocation(folder), parent.evaluations
    return CheckpointLocation(path), None


def checkpoint_lines(row: dict[str, Any]) -> Iterator[str]:
    """One checkpoint as text."""
    if imported := row["imported"]:
        yield f"  imported from {imported['source']}, fingerprint {imported['fingerprint'][:12]}"
    else:
        yield f"  step {row['step']}, saved at {row['parallel']}"
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(row["dtypes"].items()))
    content = "weights alone" if row["only_weights"] else "weights and the optimiser's moments"
    if ema := row["ema"]:
        average = f"their average (decay {ema['decay']:g}, {ema['updates']} updates)"
        content = f"weights, {average} and the optimiser's moments"
    yield f"  {row['tensors']} tensors ({kinds}) of {row['values']:,} values: {content}"
    if head := row["action_head"]:
        yield f"  action head: {head['time_horizon']} actions of {head['action_dim']} numbers"
    yield f"  {row['files']} files, {row['bytes']:,} bytes, {_state(row)}"


def checkpoints_table(url: str, rows: Sequence[dict[str, Any]]) -> Table:
    """One line per checkpoint."""
    committed = sum(row["complete"] for row in rows)
    table = Table(title=f"{url}: {committed} checkpoints", title_justify="left")
    for name in ("step", "MB", "files", "saved at", "success", "state"):
        table.add_column(name, justify="left" if name in ("saved at", "state") else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    rate = row["success_rate"]
    success = "-" if rate is None else f"{100 * rate:.0f} %"
    if "bytes" not in row:
        return [str(row["step"]), "-", "-", "-", success, _state(row)]
    layout = "-"
    if parallel := row["parallel"]:
        layout = f"tensor {parallel['tensor']} x data {parallel['data']}, ZeRO-{parallel['zero_stage']}"
    size = f"{row['bytes'] / MEGABYTE:,.1f}"
    return [str(row["step"]), size, str(row["files"]), layout, success, _state(row)]


def _state(row: dict[str, Any]) -> str:
    if not row["complete"]:
        mark = row.get("set_aside")
        return f"set aside: {mark}" if mark else f"incomplete: no {READY}"
    if row.get("damaged"):
        return f"damaged: {'; '.join(row['damaged'])}"
    return "every checksum matches" if row.get("verified") else "complete, not verified"
