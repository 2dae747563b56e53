"""A training step while an evaluation runs on another core, against the same step alone.

The trainer runs on the first core of this machine, the evaluation (the scripted expert in robosuite's Lift,
simulation and rendering) on the second. Turns with and without the evaluation alternate, so that other load
of the machine slows both.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import processes
from benchmarks.report import Column, Report, arguments
from benchmarks.step_run import Case, measure
from pretrain.config import ParallelConfig, TrainerConfig, TrainingConfig
from pretrain.settings import named_models

_MAX_RATIO = 1.05
_START_SECONDS = 120.0
_COLUMNS = (
    Column("way", "way"),
    Column("seconds", "median step", "s", digits=4),
    Column("spread", "middle half of the steps", "%", digits=1),
    Column("relative", "against alone", "x", digits=3),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("beside", __doc__)
    parser.add_argument("--rounds", type=int, help="turns of each way; default: 4")
    parser.add_argument("--steps", type=int, help="timed steps in a turn; default: 12")
    options = parser.parse_args(argv)
    rounds = options.rounds or (1 if options.smoke else 4)
    case = _case(256 if options.smoke else 1024, options.steps or (2 if options.smoke else 12))
    cores = sorted(os.sched_getaffinity(0))
    report = Report("beside", "A training step beside an evaluation", _COLUMNS, "cpu")
    if len(cores) < 2:
        report.note("not measured: it takes two cores")
        report.finish(options.out)
        return 0
    times: dict[str, list[float]] = {"alone": [], "beside an evaluation": []}
    for _ in range(rounds):
        times["alone"] += _steps(case, cores[0])
        with _evaluating(cores[1]):
            times["beside an evaluation"] += _steps(case, cores[0])
    alone = statistics.median(times["alone"])
    for way, seconds in times.items():
        median = statistics.median(seconds)
        quarters = statistics.quantiles(seconds, n=4)
        spread = 100 * (quarters[2] - quarters[0]) / median
        report.add(way=way, seconds=median, spread=spread, relative=median / alone)
    relative = report.rows[-1]["relative"]
    report.target(
        f"a step takes at most {_MAX_RATIO:g} times as long on separate cores",
        relative <= _MAX_RATIO,
        relative,
    )
    report.note(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {len(cores)} cores")
    report.finish(options.out)
    return 0


def _case(length: int, steps: int) -> Case:
    model = named_models()["tiny"]
    trainer = TrainerConfig(global_batch=1, micro_batch=1, sequence_length=length, precision="fp32")
    config = TrainingConfig(trainer=trainer, parallel=ParallelConfig(), model=model)
    return Case("tiny", model.layers, config, micro_batches=1, pixels=64, steps=steps, device="cpu")


def _steps(case: Case, core: int) -> list[float]:
    """Seconds of each timed step, in a new process on one core."""
    return processes.run_in_processes(_measure_on_core, [(case, core)])[0]


def _measure_on_core(case: Case, core: int) -> list[float]:
    os.sched_setaffinity(0, {core})
    measured = measure(case)
    assert measured is not None  # out of memory happens on GPUs only
    return measured.seconds


def _evaluate_on_core(words: list[str], core: int) -> None:
    """Run `worldvla` silently in this process, a new one."""
    os.sched_setaffinity(0, {core})
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    # Imported late: only in this process.
    from cluster.cli.main import main as worldvla

    sys.exit(worldvla(words))


@contextmanager
def _evaluating(core: int) -> Iterator[None]:
    """Run an evaluation during a `with` block, which starts after its first finished episode."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["eval", "policy=expert", "suite=robosuite_lift", "episodes=50", f"out={folder}", "workers=1"]
        context = multiprocessing.get_context(processes.START_METHOD)
        evaluation = context.Process(target=_evaluate_on_core, args=(words, core))
        evaluation.start()
        try:
            end = time.monotonic() + _START_SECONDS
            while not any(Path(folder).rglob("*.jsonl")):
                if not evaluation.is_alive() or time.monotonic() > end:
                    raise RuntimeError(f"the evaluation did not start: worldvla {' '.join(words)}")
                time.sleep(0.1)
            yield
            if not evaluation.is_alive():
                raise RuntimeError("the evaluation ended before the training did; give fewer --steps")
        finally:
            evaluation.terminate()
            evaluation.join()


if __name__ == "__main__":
    sys.exit(main())
