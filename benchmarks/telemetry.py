"""A training step with all its telemetry, compared with the same step without.

Two gloo ranks train one engine (tensor 1 x data 2, ZeRO-3) in turns: bare steps, steps with a line of
metrics after each (`trainer.log_every=1`), and after every tenth. A line holds every metric of
docs/observability.md: norms by group, speed, comparison of the ranks, memory. Meanwhile rank 0's process
updates the console's bar and logs to W&B (offline). Batches and network are the same in every turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.processes import run_in_processes
from benchmarks.report import Column, Report, arguments, free_port
from benchmarks.telemetry_run import WITHOUT, Case, Turn, measure
from pretrain.config import ParallelConfig, RunConfig, TelemetryConfig, TrainerConfig, TrainingConfig
from pretrain.settings import named_models

_RANKS = 2
_EVERY = (1, 10)
_MAX_RATIO = 1.02
_COLUMNS = (
    Column("way", "steps between lines"),
    Column("lines", "lines written"),
    Column("seconds", "median step", "s", digits=4),
    Column("relative", "against none", "x", digits=3),
    Column("low", "quarter of the turns below", "x", digits=3),
    Column("high", "quarter above", "x", digits=3),
    Column("processor", "time on a core, against none", "x", digits=3),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(argv)
    title = (
        f"Telemetry of a training: tiny network, {options.length} positions, fp32, {_RANKS} ranks, "
        f"{options.turns} turns of {options.steps} steps"
    )
    report = Report("telemetry", title, _COLUMNS, options.device)
    ranks = _run(options)
    for way in (WITHOUT, *map(str, _EVERY)):
        report.add(**_row(ranks, way, options.steps))
    _add_targets(report, options.smoke)
    report.note("against none: median over pairs of neighbouring turns, with and without, ranks together")
    report.note("time on a core: processor time of rank 0's process, console and W&B's thread included")
    report.note(f"{len(os.sched_getaffinity(0))} cores, load of {os.getloadavg()[0]:.1f} at the end")
    report.finish(options.out)
    return 0


def _add_targets(report: Report, smoke: bool) -> None:
    """The wall time decides only if the turns differ by less than the target allows."""
    ways = report.rows[1:]
    worst = max(ways, key=lambda row: row["relative"])
    scatters = smoke or max(row["high"] - row["low"] for row in ways) > _MAX_RATIO - 1
    met = None if scatters else worst["relative"] <= _MAX_RATIO
    report.target(
        f"a step with all telemetry takes at most {_MAX_RATIO:g} times as long as with none",
        met,
        worst["relative"],
    )
    processor = max(row["processor"] for row in ways)
    met = None if smoke else processor <= _MAX_RATIO
    report.target(f"it takes at most {_MAX_RATIO:g} times as much time on a core", met, processor)
    if scatters and not smoke:
        report.note(
            f"the turns differ by more than {_MAX_RATIO - 1:.0%}: the clock says nothing here, the core does"
        )


def _run(options: argparse.Namespace) -> list[list[Turn]]:
    """Measure each rank in a process of its own; its turns."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            run=RunConfig(name="measured", dir=folder),
            trainer=TrainerConfig(global_batch=_RANKS, sequence_length=options.length, precision="fp32"),
            parallel=ParallelConfig(tensor=1, data=_RANKS),
            model=named_models()["tiny"],
            telemetry=TelemetryConfig(wandb="offline"),
        )
        case = Case(config, _EVERY, options.turns, options.steps, free_port())
        return run_in_processes(measure, [(case, rank) for rank in range(_RANKS)])


def _row(ranks: Sequence[Sequence[Turn]], way: str, steps: int) -> dict[str, object]:
    """One way compared with none, turn by turn, by rank 0's clock: ranks start and end turns together."""
    turns, bare = (_of(ranks[0], name) for name in (way, WITHOUT))
    pairs = list(zip(turns, bare, strict=True))
    clock = [turn.seconds / other.seconds for turn, other in pairs]
    low, _, high = statistics.quantiles(clock, n=4) if len(clock) > 1 else clock * 3
    return {
        "way": way,
        "lines": sum(turn.lines for turn in turns),
        "seconds": statistics.median(turn.seconds for turn in turns) / steps,
        "relative": statistics.median(clock),
        "low": low,
        "high": high,
        "processor": statistics.median(turn.processor / other.processor for turn, other in pairs),
    }


def _of(turns: Sequence[Turn], way: str) -> list[Turn]:
    return [turn for turn in turns if turn.way == way]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments("telemetry", __doc__)
    parser.add_argument("--turns", type=int, help="of each way; default: 12")
    parser.add_argument("--steps", type=int, help="timed steps in a turn; default: 10")
    parser.add_argument("--length", type=int, help="positions of a rank's sequence; default: 1024")
    options = parser.parse_args(argv)
    if options.device != "cpu":
        parser.error("it measures two CPU ranks; give --device cpu")
    options.turns = options.turns or (1 if options.smoke else 12)
    options.steps = options.steps or (2 if options.smoke else 10)
    options.length = options.length or (256 if options.smoke else 1024)
    return options


if __name__ == "__main__":
    sys.exit(main())
