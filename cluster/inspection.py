"""`worldvla inspect`: what lies on disk, and the order of the data, so that anybody can check."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from rich.table import Table

from cluster.config import InspectCheckpointConfig, InspectDataConfig, InspectPlanConfig
from cluster.invocation import Invocation
from data.config import DataConfig
from data.errors import InputError
from pretrain.config import TrainerConfig


def inspect_plan(config: InspectPlanConfig, call: Invocation) -> None:
    """`worldvla inspect plan`: the window ids of every data-parallel rank in one step."""
    from data.stream.loader import plan_ids

    found = plan_ids(
        DataConfig(url=config.url, history=config.history, chunk=config.chunk),
        TrainerConfig(global_batch=config.global_batch, sequence_length=config.sequence_length),
        seed=config.seed,
        step=config.step,
        ranks=config.ranks,
    )
    if call.json:
        print(json.dumps(found))
        return
    for rank, ids in enumerate(found["ranks"]):
        call.console.print(f"  rank {rank}: {len(ids)} windows: {' '.join(map(str, ids))}")


def inspect_data(config: InspectDataConfig, call: Invocation) -> None:
    """`worldvla inspect data`: counts and splits from the index."""
    from data.storage.index import DatasetIndex

    index = DatasetIndex.load(config.url)
    groups = Counter((entry.suite, entry.task, entry.split) for entry in index.episodes)
    steps: Counter[tuple[str, str, str]] = Counter()
    for entry in index.episodes:
        steps[entry.suite, entry.task, entry.split] += entry.length
    image = index.image
    if call.json:
        rows = [
            {"suite": suite, "task": task, "split": split, "episodes": groups[key], "steps": steps[key]}
            for key in sorted(groups)
            for suite, task, split in [key]
        ]
        content = {
            "url": config.url,
            "fingerprint": index.fingerprint,
            "episodes": len(index.episodes),
            "steps": sum(steps.values()),
            "image": {"pixels": image.pixels, "rows": image.rows, "columns": image.columns},
            "groups": rows,
        }
        print(json.dumps(content, indent=2))
        return
    table = Table(title=f"{config.url}: {len(index.episodes)} episodes, {sum(steps.values())} steps")
    for name in ("suite", "task", "split", "episodes", "steps"):
        table.add_column(name, justify="right" if name in ("episodes", "steps") else "left")
    for key in sorted(groups):
        table.add_row(*key, str(groups[key]), str(steps[key]))
    call.console.print(table)
    call.console.print(f"  frames {image.pixels} px as {image.rows} x {image.columns} codes")
    call.console.print(f"  fingerprint {index.fingerprint}")


def inspect_checkpoint(config: InspectCheckpointConfig, call: Invocation) -> None:
    """`worldvla inspect checkpoint`: step, layout, sizes; every file is read and its checksum compared.

    Raises:
        InputError: No committed checkpoint there, or a file of it is damaged or missing.
    """
    from pretrain.checkpoint.manifest import Manifest, damaged

    path = Path(config.path)
    manifest = Manifest.read(path)
    if wrong := damaged(path, manifest.files):
        raise InputError(f"{path}: {'; '.join(wrong)}; take another checkpoint")
    values = sum(math.prod(tensor.shape) for tensor in manifest.tensors.values())
    content = {
        "path": str(path),
        "step": manifest.step,
        "tensors": len(manifest.tensors),
        "values": values,
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "only_weights": manifest.only_weights,
        "dtypes": dict(Counter(tensor.dtype for tensor in manifest.tensors.values())),
        "imported": manifest.metadata.get("imported"),
        "parallel": manifest.metadata.get("config", {}).get("parallel"),
        "verified": True,
    }
    if call.json:
        print(json.dumps(content, indent=2))
        return
    if imported := content["imported"]:
        call.console.print(
            f"  imported from {imported['source']}, fingerprint {imported['fingerprint'][:12]}"
        )
    else:
        call.console.print(f"  step {manifest.step}, saved at {content['parallel']}")
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(content["dtypes"].items()))
    what = "weights alone" if manifest.only_weights else "weights and AdamW's two moments"
    call.console.print(f"  {content['tensors']} tensors ({kinds}) of {values:,} values: {what}")
    call.console.print(f"  {content['files']} files, {content['bytes']:,} bytes, every checksum is right")
