"""A run of the 7B on 4 to 4,096 GPUs without a GPU: what each part costs, and which is the next bottleneck.

Measured, with the project's own code for every rank in turn: the data plan of a rank, the placement on nodes,
a checkpoint's files and tables (gathered and committed by rank 0, read by every rank). Estimated, from
inputs stated in the JSON: the step (by the planner, H100), requests to the storage, restarts. The load of a
limit is the run's demand over the limit's capacity: at 1 the run waits only for it. The largest load is the
next bottleneck, even if it is below 1. Requests to the storage are those of one node, found by replaying the
plan of its ranks over an epoch or a long part of one, in the local order and, beside it, in the full one.

Two kinds of batch: a fixed number of sequences for each GPU, and a fixed batch for any number of GPUs. The
largest run is also laid out with every tensor-parallel size of `--tensor`.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np

from benchmarks.report import Column, Report, arguments
from benchmarks.scale_measured import (
    FORM,
    CheckpointCost,
    build_plan,
    checkpoint_cost,
    episode_bytes,
    episode_lengths,
    placement_cost,
    plan_cost,
    sizes_of,
)
from benchmarks.scale_model import MINUTE, Inputs, Reading, loads, node_memory, reading, recovery
from benchmarks.scale_reading import node_requests
from data.stream.order.plan import Order
from pretrain.model.config import ModelConfig
from pretrain.planner.gpus import DEFAULT_EFFICIENCY, DEFAULT_MEMORY_RESERVE, Machine
from pretrain.planner.layouts import LayoutEstimate, LayoutRequest, feasible_layouts
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.settings import named_models

_GPU, _GPU_MEMORY = "H100", 80e9
_MICRO_BATCHES = (1, 2, 4, 8)
_MAX_PLAN_SHARE = 0.01  # of a step, in the thread that prepares batches
_COMMIT_SECONDS, _PLACEMENT_SECONDS = 10.0, 0.1
_READING_LIMITS = (
    ("requests", "at most half of the 5,500 requests a second that one prefix serves", 0.5 * 5_500),
    ("per_episode", "at most 1.1 requests an episode and epoch", 1.1),
    ("copies", "at most 1.5 x the data set read in an epoch", 1.5),
)
COLUMNS = (
    Column("batch", "batch"),
    Column("ranks", "ranks"),
    Column("layout", "layout"),
    Column("step", "step", "s"),
    Column("plan_start", "plan", "s"),
    Column("plan_megabytes", "plan", "MB", digits=0),
    Column("plan_step", "its step", "ms"),
    Column("placement", "placement", "ms", digits=1),
    Column("files", "files"),
    Column("rank_megabytes", "a rank", "MB", digits=0),
    Column("table_megabytes", "table", "MB", digits=1),
    Column("commit", "commit", "s"),
    Column("opening", "opening", "s"),
    Column("restart", "restart", "s", digits=0),
    Column("lost", "lost", "%", digits=1),
    Column("requests_full", "full order", "1/s", digits=0),
    Column("requests", "requests", "1/s", digits=0),
    Column("first_minute", "first minute", "1/s", digits=0),
    Column("per_episode", "an episode", "1/epoch", digits=3),
    Column("copies", "reads", "x data", digits=3),
    Column("read_megabytes", "reads", "MB/s", digits=0),
    Column("sent_gigabytes", "GPU sends", "GB/step", digits=0),
    Column("bottleneck", "next bottleneck"),
    Column("load", "its load"),
    Column("loads", "all loads"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, estimate and report."""
    options = parse(argv)
    inputs = Inputs()
    model = named_models()[options.model]
    lengths = episode_lengths(options.episodes, options.steps)
    report = Report("scale", "From 4 ranks to thousands", COLUMNS, "cpu", hidden=("loads",))
    for global_batch in (None, options.global_batch):
        for ranks in options.ranks:
            row = measure(model, ranks, global_batch, None, lengths, options, inputs)
            if row is not None:
                report.add(**row)
    for tensor in options.tensor:
        row = measure(model, options.ranks[-1], None, tensor, lengths, options, inputs)
        if row is not None:
            report.add(**row)
    _targets(report, options)
    _notes(report, options, inputs)
    report.finish(options.out)
    return 0


def parse(argv: Sequence[str] | None) -> Namespace:
    """The command line."""
    parser = arguments("scale", __doc__)
    parser.add_argument("--model", choices=sorted(named_models()), default="7b", help="default: %(default)s")
    parser.add_argument("--ranks", nargs="+", type=int, help="default: 4 8 32 128 512 2048 4096")
    parser.add_argument("--episodes", type=int, help="of the data set; default: 1,000,000")
    parser.add_argument("--steps", type=int, default=120, help="of a mean episode; default: %(default)s")
    parser.add_argument("--sequence-length", type=int, default=4096, help="default: %(default)s")
    parser.add_argument("--global-batch", type=int, default=1024, help="sequences; default: %(default)s")
    parser.add_argument("--tensor", nargs="*", type=int, help="of more layouts of the largest run; 1 2 8")
    options = parser.parse_args(argv)
    if options.smoke:
        options.model = "tiny"
    options.tensor = ([1] if options.smoke else [1, 2, 8]) if options.tensor is None else options.tensor
    options.ranks = options.ranks or (sizes_of(8) if options.smoke else sizes_of(4096))
    options.episodes = options.episodes or (1000 if options.smoke else 1_000_000)
    return options


def measure(
    model: ModelConfig,
    ranks: int,
    global_batch: int | None,
    tensor: int | None,
    lengths: np.ndarray,
    options: Namespace,
    inputs: Inputs,
) -> dict[str, Any] | None:
    """One row; None if the batch is too small for this number of ranks, or no layout has this tensor size."""
    request = LayoutRequest(
        model,
        ranks,
        _GPU_MEMORY,
        DEFAULT_MEMORY_RESERVE,
        options.sequence_length,
        _MICRO_BATCHES,
        global_batch,
        Machine.of_gpu(_GPU, DEFAULT_EFFICIENCY, inputs.node_gpus),
    )
    if request.step_sequences < ranks // inputs.node_gpus:
        return None
    fitting = [each for each in feasible_layouts(request) if tensor in (None, each.layout.tensor)]
    if not fitting:
        return None
    chosen = fitting[0]
    layout, step = chosen.layout, chosen.step
    plan = plan_cost(lengths, request.step_sequences, options.sequence_length, layout.data)
    placing = placement_cost(ranks, layout.tensor, inputs.node_gpus, inputs.node_cpus)
    checkpoint = _checkpoint(options.model, layout.tensor, layout.data)
    full, read = (_reading(chosen, request, order, lengths, options, inputs) for order in ("full", "local"))
    recovered = recovery(checkpoint, plan, ranks, inputs)
    tokens = request.step_sequences * options.sequence_length
    load_of = loads(step, read, recovered, checkpoint, plan, ranks, tokens, inputs)
    worst = max(load_of, key=lambda name: load_of[name])
    return {
        "batch": f"{request.step_sequences // ranks} a GPU" if global_batch is None else str(global_batch),
        "ranks": ranks,
        "layout": _layout_name(layout),
        "step": step.seconds,
        "plan_start": plan.start_seconds,
        "plan_megabytes": plan.bytes / 1e6,
        "plan_step": plan.step_seconds * 1e3,
        "placement": placing * 1e3,
        "files": checkpoint.files,
        "rank_megabytes": checkpoint.rank_bytes / 1e6,
        "table_megabytes": checkpoint.chunk_table_bytes / 1e6,
        "commit": checkpoint.commit_seconds,
        "opening": checkpoint.open_seconds,
        "restart": recovered.restart_seconds,
        "lost": 100 * recovered.lost,
        "requests_full": full.requests,
        "requests": read.requests,
        "first_minute": read.first_minute,
        "per_episode": read.requests_per_episode,
        "copies": read.copies,
        "read_megabytes": read.bytes / 1e6,
        "sent_gigabytes": (step.partition_bytes + step.tensor_bytes) / 1e9,
        "bottleneck": worst,
        "load": load_of[worst],
        "loads": {name: round(value, 4) for name, value in load_of.items()},
    }


def _layout_name(layout: ParallelLayout) -> str:
    name = f"{layout.tensor} x {layout.data}"
    name += f", hpZ {layout.hpz}" if layout.hpz > 1 else ""
    name += f", ZeRO-{layout.zero_stage}" if layout.zero_stage != 3 else ""
    return name + (f", {layout.offload}" if layout.offload != "none" else "")


def _reading(
    chosen: LayoutEstimate,
    request: LayoutRequest,
    order: Order,
    lengths: np.ndarray,
    options: Namespace,
    inputs: Inputs,
) -> Reading:
    """Requests in one order; without a cache that the ranks of a node share in the full one."""
    layout, step = chosen.layout, chosen.step
    shared = inputs if order == "local" else replace(inputs, node_cache=0)
    node = node_memory(layout, FORM, options.steps, shared)
    plan = build_plan(lengths, request.step_sequences, options.sequence_length, order)
    found = node_requests(plan, layout.data, lengths, node, round(MINUTE / step.seconds) + 1)
    nodes = request.gpus / (node.ranks * node.peers)
    return reading(found, step, nodes, len(lengths), episode_bytes(options.steps))


@cache
def _checkpoint(model: str, tensor: int, data: int) -> CheckpointCost:
    return checkpoint_cost(named_models()[model], tensor, data)


def _targets(report: Report, options: Namespace) -> None:
    rows = report.rows
    most = max(row["ranks"] for row in rows)
    share = max(row["plan_step"] / 1e3 / row["step"] for row in rows)
    report.target(
        f"a rank's plan of a step takes below 1 % of the step, up to {most} ranks",
        share < _MAX_PLAN_SHARE,
        share,
    )
    commit = max(row["commit"] for row in rows)
    report.target(
        f"rank 0 commits a checkpoint of {most} ranks within 10 s", commit < _COMMIT_SECONDS, commit
    )
    placing = max(row["placement"] for row in rows) / 1e3
    report.target(f"{most} ranks find their nodes within 0.1 s", placing < _PLACEMENT_SECONDS, placing)
    for batch in dict.fromkeys(row["batch"] for row in rows):
        largest = [row for row in rows if row["ranks"] == most and row["batch"] == batch]
        layouts = ", ".join(dict.fromkeys(row["layout"] for row in largest))
        for name, text, limit in _READING_LIMITS:
            worst = max((row[name] for row in largest), default=0.0)
            met = None if options.smoke or not largest else worst <= limit
            report.target(f"{text} (batch {batch}, {most} ranks, {layouts})", met, worst)


def _notes(report: Report, options: Namespace, inputs: Inputs) -> None:
    report.note(
        f"measured: plan, placement, files, a rank's MB, table, commit, opening ({options.episodes:,} "
        f"made-up episodes of {options.steps} steps on average, 256 px)"
    )
    report.note(
        f"estimated: step ({_GPU}, {DEFAULT_EFFICIENCY:.0%} of its peak), restart, lost, requests, reads, "
        "loads"
    )
    report.note("inputs: " + ", ".join(f"{name} {value:g}" for name, value in asdict(inputs).items()))
    for batch in dict.fromkeys(row["batch"] for row in report.rows):
        rows = [row for row in report.rows if row["batch"] == batch]
        for name in rows[0]["loads"]:
            over = [row["ranks"] for row in rows if row["loads"][name] > 1]
            if over:
                report.note(f"batch {batch}: {name} is a bottleneck from {over[0]} ranks on")


if __name__ == "__main__":
    sys.exit(main())
