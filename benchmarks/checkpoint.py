"""Saving and loading a training's state: ours, DeepSpeed's own `save_checkpoint`, torch DCP in three ways.

Two gloo ranks hold one engine (tensor 1 x data 2); its fp32 weights and moments are saved and loaded in each
way in turn, round after round. *Stall* is the time for which the training stands still: in the save and,
where copies are made beside the next step, before that step's update. *Next step* is what the save adds to
the step after it, the stall included: copies beside a step take a part of a core and of the memory's
bandwidth. *Processor* is the processor time of all threads that a save takes besides the two steps after it,
which other programs disturb less. *Write* is the time until the checkpoint is complete, *load* the time until
the state is in the engine again, both without a training beside them. Of the ranks the slower counts, of the
rounds the median. Ours calls fsync and stores SHA-256 sums, which loading verifies; DeepSpeed does neither,
DCP calls fsync.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.checkpoint_run import STEPS_AFTER, Case, Measured, Turn, measure
from benchmarks.checkpoint_ways import OURS
from benchmarks.processes import run_in_processes
from benchmarks.report import Column, Report, arguments, free_port
from pretrain.config import ParallelConfig, TrainerConfig, TrainingConfig, ZeroStage
from pretrain.settings import named_models

_RANKS = 2
_TARGET = 0.05  # seconds of stall for each GB of a rank's shard
_COLUMNS = (
    Column("way", "way"),
    Column("stage", "ZeRO"),
    Column("shard", "a rank's shard", "GB", digits=3),
    Column("stall", "stall", "s", digits=4),
    Column("stall_per_gb", "stall", "s/GB", digits=3),
    Column("copies", "stall", "x a plain copy", digits=2),
    Column("step", "a step", "s", digits=3),
    Column("longer", "next step", "+ s", digits=3),
    Column("processor", "processor", "+ s", digits=3),
    Column("write", "write", "s", digits=3),
    Column("load", "load", "s", digits=3),
    Column("stored", "stored", "GB", digits=3),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(argv)
    title = (
        f"Checkpoints of a network of width {options.hidden_size}, fp32, {_RANKS} ranks, "
        f"medians of {options.rounds} rounds"
    )
    report = Report("checkpoint", title, _COLUMNS, options.device)
    for stage in options.zero_stage:
        _add_rows(report, stage, _run(options, stage))
    ours = [row["stall_per_gb"] for row in report.rows if row["way"] == OURS]
    met = None if options.smoke else max(ours) < _TARGET
    report.target(f"stall below {_TARGET} s for each GB of a rank's shard", met, max(ours))
    report.note("ours: fsync and SHA-256 included, verified on loading; DCP: fsync; DeepSpeed: neither")
    report.note("loads come from the page cache; a plain copy: as many bytes within the host's memory")
    report.note(f"{len(os.sched_getaffinity(0))} cores, load of {os.getloadavg()[0]:.1f} at the end")
    report.finish(options.out)
    return 0


def _run(options: argparse.Namespace, stage: ZeroStage) -> list[Measured]:
    """Measure each rank in a process of its own."""
    width = options.hidden_size
    model = replace(named_models()["tiny"], hidden_size=width, ffn_size=11 * width // 4)
    config = TrainingConfig(
        trainer=TrainerConfig(global_batch=_RANKS, sequence_length=512, precision="fp32"),
        parallel=ParallelConfig(tensor=1, data=_RANKS, zero_stage=stage),
        model=replace(model, max_positions=max(model.max_positions, 1024)),
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        case = Case(config, Path(folder) / "checkpoints", options.rounds, free_port())
        return run_in_processes(measure, [(case, rank) for rank in range(_RANKS)])


def _add_rows(report: Report, stage: int, ranks: Sequence[Measured]) -> None:
    shard = max(rank.shard for rank in ranks) / 1e9
    copy = statistics.median(map(max, zip(*(rank.copies for rank in ranks), strict=True)))
    plain = [max(step) for step in zip(*(rank.plain_steps for rank in ranks), strict=True)]
    step = statistics.median(seconds for seconds, _ in plain)
    processor = statistics.median(processor for rank in ranks for _, processor in rank.plain_steps)
    for way, size in ranks[0].bytes.items():

        def median(seconds: Callable[[Turn], float], way: str = way) -> float:
            turns = zip(*(rank.turns[way] for rank in ranks), strict=True)
            return statistics.median(max(map(seconds, turn)) for turn in turns)

        stall = median(lambda turn: turn.stall)
        report.add(
            way=way,
            stage=stage,
            shard=shard,
            stall=stall,
            stall_per_gb=stall / shard,
            copies=stall / copy,
            step=step,
            longer=median(lambda turn: turn.next_step) - step,
            processor=median(lambda turn: turn.processor) - STEPS_AFTER * processor,
            write=median(lambda turn: turn.write),
            load=median(lambda turn: turn.load),
            stored=size / 1e9,
        )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments("checkpoint", __doc__)
    parser.add_argument("--hidden-size", type=int, help="of the tiny network; default: 512")
    parser.add_argument("--zero-stage", type=int, nargs="+", choices=(1, 2, 3), help="default: 1 and 3")
    parser.add_argument("--rounds", type=int, help="turns of each way; default: 5")
    parser.add_argument(
        "--folder", type=Path, help="a folder on the disk to measure; default: a temporary one"
    )
    options = parser.parse_args(argv)
    if options.device != "cpu":
        parser.error("it measures two CPU ranks; give --device cpu")
    options.hidden_size = options.hidden_size or (32 if options.smoke else 512)
    options.zero_stage = options.zero_stage or ([3] if options.smoke else [1, 3])
    options.rounds = options.rounds or (1 if options.smoke else 5)
    return options


if __name__ == "__main__":
    sys.exit(main())
