"""What a save costs the training step beside it, on the device: copies to host memory while it computes.

One rank, some layers of a model. Steps without and with a save take turns; each save is complete before the
next begins. *In the call* is the time of `CheckpointWriter.save` itself, *waited* how long the next update
waited for copies, *next step* the step after the save against one without. The stall is call and wait.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.packed import packed_batch
from benchmarks.processes import run_in_processes
from benchmarks.report import Column, Report, arguments
from benchmarks.step_run import become_alone
from pretrain.config import TrainerConfig, TrainingConfig
from pretrain.settings import named_models

_TARGET_PER_CENT = 1.0
_COLUMNS = (
    Column("variant", "variant"),
    Column("shard", "written", "GB", digits=2),
    Column("step", "a step", "s", digits=3),
    Column("call", "in the call", "s", digits=4),
    Column("waited", "waited", "s", digits=4),
    Column("next_step", "next step", "s", digits=3),
    Column("write", "complete after", "s", digits=1),
    Column("stall", "stall", "% of a step", digits=2),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A training and how many saves are measured."""

    config: TrainingConfig
    device: str
    pixels: int
    saves: int


@dataclass(frozen=True, slots=True)
class Save:
    """Seconds of one save: in its call, of the next update's wait, of the steps, until it is complete."""

    call: float
    waited: float
    plain_step: float
    next_step: float
    write: float
    bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the JSON file."""
    parser = arguments("staging", __doc__)
    parser.add_argument("--model", choices=list(named_models()), help="default: tiny, on a GPU 1b")
    parser.add_argument("--layers", type=int, default=4, help="of the model; default: %(default)s")
    parser.add_argument("--saves", type=int, help="default: 3, with --smoke 1")
    options = parser.parse_args(argv)
    gpu = options.device == "cuda"
    name = options.model or ("1b" if gpu and not options.smoke else "tiny")
    whole = named_models()[name]
    model = replace(
        whole,
        layers=min(options.layers, whole.layers),
        recompute="none",
        max_positions=max(whole.max_positions, 1024),
    )
    trainer = TrainerConfig(
        global_batch=1,
        micro_batch=1,
        sequence_length=8192 if gpu and not options.smoke else 512,
        precision="bf16" if gpu else "fp32",
    )
    config = TrainingConfig(trainer=trainer, model=model)
    report = Report("staging", "Saves beside a step, one rank", _COLUMNS, options.device, out=options.out)
    pixels, saves = (
        256 if trainer.sequence_length >= 1024 else 64,
        options.saves or (1 if options.smoke else 3),
    )
    (measured,) = run_in_processes(measure, [(Case(config, options.device, pixels, saves),)])
    row = _row(f"{name} {model.layers}/{whole.layers} layers", measured)
    report.add(**row)
    met = row["stall"] < _TARGET_PER_CENT if gpu and not options.smoke else None
    report.target("stall below 1 % of a step on a GPU", met, row["stall"] if met is not None else None)
    report.finish(options.out)
    return 0


def measure(case: Case) -> list[Save]:
    """Train and save in this process, a fresh one."""
    become_alone(case.device)
    # Imported late: DeepSpeed looks for GPUs when it is imported.
    import torch.distributed as dist

    from pretrain.checkpoint.fragments import fragments
    from pretrain.checkpoint.save import CheckpointWriter
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.mesh import Mesh

    engine = Engine.build(case.config, ProcessGroups.create(Mesh(1, 1)))
    batches = [packed_batch(1, case.config.trainer.sequence_length, case.pixels)]

    def step() -> None:
        float(engine.step(batches, learning_rate=1e-6).loss)  # waits for the device

    step()  # the first makes the moments
    size = sum(4 * state.numel() for part in fragments(engine) for state in part.states.values())
    saves: list[Save] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-staging-") as folder:
        writer = CheckpointWriter(Path(folder), engine)
        for number in range(1, case.saves + 2):  # the first allocates pinned memory, and does not count
            plain = _seconds(step)
            writer.take_wait()
            begin = time.perf_counter()
            call = _seconds(lambda number=number: writer.save(number, {}))
            following = _seconds(step)
            waited = writer.take_wait()
            writer.wait()
            write = time.perf_counter() - begin
            saves.append(Save(call, waited, plain, following, write, size))
    dist.destroy_process_group()
    return saves[1:]


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _row(variant: str, saves: Sequence[Save]) -> dict[str, Any]:
    def median(value: Callable[[Save], float]) -> float:
        return statistics.median(map(value, saves))

    return {
        "variant": variant,
        "shard": saves[-1].bytes / 1e9,
        "step": median(lambda save: save.plain_step),
        "call": median(lambda save: save.call),
        "waited": median(lambda save: save.waited),
        "next_step": median(lambda save: save.next_step),
        "write": median(lambda save: save.write),
        "stall": median(lambda save: 100 * (save.call + save.waited) / save.plain_step),
    }


if __name__ == "__main__":
    sys.exit(main())
