"""`worldvla inspect`: data sets, data order, checkpoints, memory and placement on nodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cluster.cli.invocation import Invocation
from cluster.failures import CommandFailedError
from cluster.inspect.config import (
    InspectCheckpointConfig,
    InspectClusterConfig,
    InspectDataConfig,
    InspectMemoryConfig,
    InspectPlanConfig,
)
from pretrain.telemetry.progress import ProgressDisplay, SpeedEstimate

if TYPE_CHECKING:
    from data.storage.dataset_scan import DatasetScan
    from data.storage.index import DatasetIndex


def run_inspect_plan(config: InspectPlanConfig, invocation: Invocation) -> None:
    """Show which windows every data-parallel rank reads in one step."""
    from cluster.inspect.plan import plan_step

    step_plan = plan_step(config)
    if invocation.json:
        print(json.dumps({"ranks": step_plan.window_ids}))
        return
    for line in step_plan.lines():
        invocation.console.print(line)


def run_inspect_data(config: InspectDataConfig, invocation: Invocation) -> None:
    """Show what a data set holds and verify every episode.

    Raises:
        InputError: No data set there, one without episodes, or the contact sheet cannot be made as requested.
        CommandFailedError: Episodes are damaged or missing; each is named.
    """
    from cluster.inspect.dataset import (
        dataset_content,
        draw_contact_sheet,
        open_dataset,
        sheet_file,
        sheet_tokenizer,
    )
    from cluster.inspect.dataset_text import dataset_lines, groups_table
    from data.prepare.left_out import read_left_out

    index = open_dataset(config.url)
    sheet = sheet_file(index, config)
    tokenizer = None if sheet is None else sheet_tokenizer(index, config)
    scan = _scan(index, invocation) if config.verify else None
    damaged = [] if scan is None else scan.damaged
    left_out = read_left_out(index.store, index.fingerprint)
    content = dataset_content(index, config.url, scan, left_out)
    if tokenizer is not None and sheet is not None and not damaged:
        content["sheet"] = draw_contact_sheet(index, tokenizer, sheet, config.episodes)
    if invocation.json:
        print(json.dumps(content, indent=2))
    else:
        invocation.console.print(groups_table(content))
        for line in dataset_lines(index, content, scan, sheet is not None):
            invocation.console.print(line, markup=False)
    for line in damaged:
        invocation.console.print(f"  damaged: {line}", markup=False)
    if damaged:
        raise CommandFailedError(
            f"{len(damaged)} of {len(index.episodes)} episodes are damaged or missing, the first: "
            f"{damaged[0]}"
        )


def _scan(index: DatasetIndex, invocation: Invocation) -> DatasetScan:
    from data.storage.dataset_scan import scan_dataset

    total, speed = len(index.episodes), SpeedEstimate("episodes")
    with ProgressDisplay(invocation.console) as display:
        bar = display.bar("verify", total)
        return scan_dataset(index, lambda done: bar.update(done, detail=speed.update(done, total)))


def run_inspect_checkpoint(config: InspectCheckpointConfig, invocation: Invocation) -> None:
    """Show one checkpoint in detail, or list those of a run, of a folder or of an object store.

    Raises:
        InputError: No checkpoint there.
        CommandFailedError: A file is damaged or missing.
    """
    from cluster.inspect import checkpoint

    if checkpoint.is_checkpoint(config.path):
        rows = [checkpoint.read_checkpoint(config.path)]
        content: dict[str, Any] = rows[0]
    else:
        url, rows = checkpoint.list_checkpoints(config.path)
        content = {"path": url, "checkpoints": rows}
    if config.verify:
        _verify_checkpoints([row for row in rows if "bytes" in row], invocation)
    if invocation.json:
        print(json.dumps(content, indent=2))
    elif content is rows[0]:
        for line in checkpoint.checkpoint_lines(rows[0]):
            invocation.console.print(line)
    else:
        invocation.console.print(checkpoint.checkpoints_table(content["path"], rows))
    if damages := checkpoint.damages(rows):
        raise CommandFailedError(f"{'; '.join(damages)}; take another checkpoint")


def _verify_checkpoints(rows: Sequence[dict[str, Any]], invocation: Invocation) -> None:
    """Compare every file with its checksum; the result is in the rows."""
    from cluster.inspect.checkpoint import MEGABYTE, verify_checkpoint

    with ProgressDisplay(invocation.console) as display:
        bar = display.bar("verify MB", max(1, sum(row["bytes"] for row in rows) // MEGABYTE))
        verified = 0

        def add(size: int) -> None:
            nonlocal verified
            verified += size
            bar.update(verified // MEGABYTE)

        for row in rows:
            verify_checkpoint(row, add)


def run_inspect_cluster(config: InspectClusterConfig, invocation: Invocation) -> None:
    """Show which node would run what.

    Raises:
        InputError: The run does not fit the nodes, or a setting is out of range.
    """
    from cluster.inspect.nodes import TABLE_WIDTH, place_on_nodes, placement_content, placement_table
    from cluster.resources.evaluation_needs import evaluation_line

    resources, placements = place_on_nodes(config)
    if invocation.json:
        nodes = [placement_content(placement) for placement in placements]
        print(json.dumps({"placement": asdict(resources), "nodes": nodes}, indent=2))
    else:
        invocation.console.width = max(invocation.console.width, TABLE_WIDTH)
        invocation.console.print(placement_table(config, resources, placements))
        invocation.console.print(f"  {evaluation_line(config)}", markup=False)


def run_inspect_memory(config: InspectMemoryConfig, invocation: Invocation) -> None:
    """Show the layouts that fit the GPUs, with their estimated memory, communication and step time.

    Raises:
        InputError: A setting is out of range, or no layout fits.
    """
    from cluster.inspect import memory

    request, plans = memory.plan_layouts(config)
    if invocation.json:
        print(json.dumps(memory.layouts_content(config, request, plans), indent=2))
        return
    shown = plans[: config.show]
    invocation.console.width = max(invocation.console.width, memory.TABLE_WIDTH)
    invocation.console.print(memory.layouts_table(request, shown, len(plans)))
    for line in memory.explanation_lines(config, request, plans[0]):
        invocation.console.print(line)
