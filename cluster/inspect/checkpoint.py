"""`worldvla inspect checkpoint`: what checkpoints are there, and whether every file is as it was written."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.console import Board
from cluster.failures import CommandFailedError
from cluster.inspect.config import InspectCheckpointConfig
from cluster.invocation import Invocation
from data.errors import InputError
from pretrain.checkpoint.location import CheckpointLocation, open_checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.retention import success_rates
from pretrain.checkpoint.verification import find_damage
from pretrain.run_layout import READY, RunLayout
from pretrain.settings import read_yaml

_THREADS = 4
_MEGABYTE = 1_000_000


def inspect_checkpoint(config: InspectCheckpointConfig, call: Invocation) -> None:
    """`worldvla inspect checkpoint`: one checkpoint in full, or a list of those of a run or a place.

    Raises:
        InputError: No checkpoint there.
        CommandFailedError: A file is damaged or missing.
    """
    one = open_checkpoint(config.path).exists(READY)
    if wrong := _inspect_one(config, call) if one else _inspect_all(config, call):
        raise CommandFailedError(f"{'; '.join(wrong)}; take another checkpoint")


def _inspect_one(config: InspectCheckpointConfig, call: Invocation) -> list[str]:
    found = _described(config.path)
    wrong = _verified([found], config, call)
    if call.json:
        print(json.dumps(found, indent=2))
        return wrong
    if imported := found["imported"]:
        call.console.print(
            f"  imported from {imported['source']}, fingerprint {imported['fingerprint'][:12]}"
        )
    else:
        call.console.print(f"  step {found['step']}, saved at {found['parallel']}")
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(found["dtypes"].items()))
    what = "weights alone" if found["only_weights"] else "weights and the optimiser's moments"
    call.console.print(f"  {found['tensors']} tensors ({kinds}) of {found['values']:,} values: {what}")
    call.console.print(f"  {found['files']} files, {found['bytes']:,} bytes, {_state(found)}")
    return wrong


def _inspect_all(config: InspectCheckpointConfig, call: Invocation) -> list[str]:
    place, evaluations = _place(config.path)
    steps = place.scan()
    if not steps:
        raise InputError(
            f"{config.path}: no committed checkpoint there; name a run's folder, a folder or URL with "
            "step_... in it, or one of those"
        )
    scores = success_rates(evaluations)
    rows: list[dict[str, Any]] = []
    for step, whole in steps.items():
        row: dict[str, Any] = {"path": place.checkpoint_url(step), "step": step, "complete": whole}
        if whole:
            try:
                row |= _described(place.checkpoint_url(step))
            except InputError as error:
                row["damaged"] = [str(error)]
        rows.append(row | {"success_rate": scores.get(step)})
    wrong = [line for row in rows for line in row.get("damaged", ())]
    wrong += _verified([row for row in rows if "bytes" in row], config, call)
    if call.json:
        print(json.dumps({"path": place.url, "checkpoints": rows}, indent=2))
        return wrong
    table = Table(title=f"{place.url}: {sum(steps.values())} checkpoints", title_justify="left")
    for name in ("step", "MB", "files", "saved at", "success", "state"):
        table.add_column(name, justify="left" if name in ("saved at", "state") else "right")
    for row in rows:
        table.add_row(*_cells(row))
    call.console.print(table)
    return wrong


def _place(path: str) -> tuple[CheckpointLocation, Path | None]:
    """Where the checkpoints are that are meant, and the evaluations of their run, if it is known."""
    folder = Path(path)
    run, parent = RunLayout(folder), RunLayout(folder.resolve().parent)
    if "://" not in path and run.config.is_file():
        url = (read_yaml(run.config).get("checkpointing") or {}).get("url")
        return CheckpointLocation(url or run.checkpoints), run.evaluations
    if "://" not in path and parent.config.is_file():
        return CheckpointLocation(folder), parent.evaluations
    return CheckpointLocation(path), None


def _described(url: str) -> dict[str, Any]:
    """What a manifest says."""
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
        "dtypes": dict(Counter(tensor.dtype for tensor in manifest.tensors.values())),
        "imported": manifest.metadata.get("imported"),
        "parallel": manifest.metadata.get("config", {}).get("parallel"),
    }


def _verified(rows: list[dict[str, Any]], config: InspectCheckpointConfig, call: Invocation) -> list[str]:
    """Read all files, if that is asked for; what is wrong, and in each row what is wrong with it."""
    if not config.verify:
        return []
    wrong: list[str] = []
    with Board(call.console) as board:
        bar = board.bar("verify MB", max(1, sum(row["bytes"] for row in rows) // _MEGABYTE))
        read = 0

        def count(length: int) -> None:
            nonlocal read
            read += length
            bar.update(read // _MEGABYTE)

        for row in rows:
            row["damaged"] = _damaged(row["path"], count)
            row["verified"] = not row["damaged"]
            wrong += [f"{row['path']}: damaged: {line}" for line in row["damaged"]]
    return wrong


def _damaged(url: str, count: Callable[[int], None]) -> list[str]:
    store = open_checkpoint(url)
    return find_damage(store, Manifest.read(store).files, min(_THREADS, os.cpu_count() or 1), count)


def _cells(row: dict[str, Any]) -> list[str]:
    rate = row["success_rate"]
    success = "-" if rate is None else f"{100 * rate:.0f} %"
    if "bytes" not in row:
        return [str(row["step"]), "-", "-", "-", success, _state(row)]
    layout = "-"
    if parallel := row["parallel"]:
        layout = f"tensor {parallel['tensor']} x data {parallel['data']}, ZeRO-{parallel['zero_stage']}"
    size = f"{row['bytes'] / _MEGABYTE:,.1f}"
    return [str(row["step"]), size, str(row["files"]), layout, success, _state(row)]


def _state(row: dict[str, Any]) -> str:
    if not row["complete"]:
        return f"torn: no {READY}"
    if row.get("damaged"):
        return f"damaged: {'; '.join(row['damaged'])}"
    return "every checksum is right" if row.get("verified") else "complete, not verified"
