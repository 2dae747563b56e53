"""A whole training step through the engine: forward, backward, gradient reduction, clipping and AdamW.

    FLOPs of a step = 6 N t + 6 V h l + 12 L h p                      (pretrain.planner.flops)
    MFU             = FLOPs of the step / (seconds of the step * peak FLOP/s of all ranks)

N parameters of the layers, t tokens without padding, V vocabulary, h hidden size, l labelled positions, L
layers, p pairs (query, key) of causal attention within the samples; recomputation is not counted. The full
count ("full MFU") takes for p all pairs within the samples, later keys included, as figures of other systems
do (those take the square of the whole sequence, which packed samples do not attend to). Batches are packed
WorldVLA sequences of random 256-pixel frames (M = 2, K = 5, as many action as world samples), the
same in every step. Peak FLOP/s: the vendor's dense bf16 figure; on a CPU a measured matrix product.

One process trains alone; `torchrun --nproc-per-node 8 -m benchmarks.step --tensor 2 ...` measures several
GPUs, one variant a run (the ranks that are not tensor parallel are data parallel). AdamW in mixed precision
takes 16 bytes a parameter: 112 GB for 7B, more than a GPU of 80 GB has. On one, fewer layers of the same
shape are trained, as many as leave room for activations (or `--layers`), and the table says how many. With
two depths, l < m, a row of all L layers is extrapolated, since each layer costs the same:

    seconds(L) = seconds(m) + (L - m) * (seconds(m) - seconds(l)) / (m - l)

so that embedding, head and loss are counted once. Several GPUs measure the whole.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import get_args

import torch

from benchmarks.processes import run_in_processes
from benchmarks.report import Report, arguments
from benchmarks.step_run import Case, Measured, measure
from benchmarks.step_table import (
    COLUMNS,
    IN_FILE,
    Timed,
    add_targets,
    extrapolated_row,
    row_of,
    unmeasured_row,
)
from pretrain.config import ParallelConfig, Precision, TrainerConfig, TrainingConfig
from pretrain.model.config import RECOMPUTE_POLICIES, AttentionBackend, CompileChoice, ModelConfig
from pretrain.settings import named_models

_STATE_BYTES = 16  # a parameter: weight and gradient in bf16, master and two moments in fp32
_STATE_SHARE = 0.6  # of a GPU's memory, when layers are left out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(argv)
    cases = list(_cases(options))
    hidden = IN_FILE if options.device == "cuda" else (*IN_FILE, "held")
    out = options.out if _is_first_rank() else None
    report = Report("step", _title(cases[0]), COLUMNS, options.device, hidden, out)
    results = _measure_all(cases, options.rounds)
    if options.device == "cpu":  # its peak is measured, too: the fastest of all is nearest
        results = list(results)
    _add_rows(report, cases, results)
    add_targets(report, options.device)
    report.note("variant: model, layers, attention, recompute; speed: against the model's first variant")
    report.note("tokens: without padding, over all ranks; spread: of the steps, as a share of the median")
    report.note("added: most that a step holds above what is held between steps")
    if options.device == "cpu":
        report.note("MFU: of a matrix product's speed on this machine, the fastest measured")
    if _is_first_rank():
        report.finish(options.out)
    return 0


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _add_rows(report: Report, cases: Sequence[Case], results: Iterable[Measured | None]) -> None:
    """A row of each variant as soon as it is measured, and of all layers where that was the second depth."""
    first: dict[str, Timed] = {}
    timed: list[Timed] = []
    known = [each for each in results if each is not None] if isinstance(results, list) else []
    peak = max((each.peak_flops for each in known), default=0.0)
    for case, measured in zip(cases, results, strict=True):
        if measured is None:
            row = unmeasured_row(case)
            report.note(f"{row['variant']}: out of memory")
            report.add(**row)
            continue
        newest = Timed(case, measured, max(peak, measured.peak_flops))
        report.add(**row_of(newest, first.setdefault(case.model, newest)))
        if (row := extrapolated_row(timed, newest)) is not None:
            report.add(**row)
        timed.append(newest)


def _title(case: Case) -> str:
    trainer, parallel = case.config.trainer, case.config.parallel
    return (
        f"Training step, {trainer.precision}: {trainer.global_batch} x {trainer.sequence_length} positions, "
        f"micro-batches of {trainer.micro_batch}; tensor {parallel.tensor}"
        f"{' with sequence parallel' if parallel.sequence_parallel else ''} x data {parallel.data}, "
        f"ZeRO-{parallel.zero_stage}"
    )


def _measure_all(cases: Sequence[Case], rounds: int) -> Iterator[Measured | None]:
    """Measure in this process under torchrun, otherwise each variant in a process of its own.

    The variants take turns, round after round, so that a busy machine slows all of them. With one round each
    is given back at once.
    """
    if "RANK" in os.environ:
        yield from map(measure, cases)
    elif rounds == 1:
        yield from (run_in_processes(measure, [(case,)])[0] for case in cases)
    else:
        turns = [[run_in_processes(measure, [(case,)])[0] for case in cases] for _ in range(rounds)]
        yield from (_joined([turn[number] for turn in turns]) for number in range(len(cases)))


def _joined(turns: Sequence[Measured | None]) -> Measured | None:
    done = [turn for turn in turns if turn is not None]
    if len(done) < len(turns):
        return None
    seconds = [second for turn in done for second in turn.seconds]
    # On a CPU other programs may have slowed down a probe of the peak: the highest is nearest.
    return replace(done[0], seconds=seconds, peak_flops=max(turn.peak_flops for turn in done))


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    ranks = options.tensor * options.data
    trainer = TrainerConfig(
        global_batch=options.micro_batch * options.micro_batches * options.data,
        micro_batch=options.micro_batch,
        sequence_length=options.sequence_length,
        precision=_precision(options.device),
    )
    parallel = ParallelConfig(
        tensor=options.tensor,
        data=options.data,
        zero_stage=options.zero_stage,
        sequence_parallel=options.sequence_parallel,
    )
    for name in options.models:
        whole = named_models()[name]
        depths = options.layers or [layers_that_fit(whole, options.device, ranks)]
        for attention, compiled, recompute, layers in itertools.product(
            options.attention, options.compile, options.recompute, depths
        ):
            model = replace(
                whole,
                layers=min(layers, whole.layers),
                max_positions=max(whole.max_positions, 1024),  # of the longest sample; a longer rotary table
                attention=attention,
                compile=compiled,
                recompute=recompute,
            )
            config = TrainingConfig(trainer=trainer, parallel=parallel, model=model)
            yield Case(
                name,
                whole.layers,
                config,
                options.micro_batches,
                options.pixels,
                options.steps,
                options.device,
            )


def layers_that_fit(model: ModelConfig, device: str, ranks: int, share: float = _STATE_SHARE) -> int:
    """As many layers as leave room for activations on each GPU; on a CPU all.

    Args:
        model: The whole network.
        device: `cpu` or `cuda`.
        ranks: Over which its state is partitioned.
        share: Of a GPU's memory that the state may take.
    """
    if device == "cpu":
        return model.layers
    room = share * torch.cuda.get_device_properties(0).total_memory * ranks / _STATE_BYTES
    room -= 2 * model.vocabulary_size * model.hidden_size
    return max(1, int(room / (4 * model.hidden_size**2 + 3 * model.hidden_size * model.ffn_size)))


def _precision(device: str) -> Precision:
    return "bf16" if device == "cuda" else "fp32"


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments("step", __doc__)
    parser.add_argument(
        "--models",
        "--model",
        nargs="+",
        choices=list(named_models()),
        help="default: tiny, on a GPU 1b and 7b",
    )
    parser.add_argument("--layers", type=int, nargs="+", help="train so many layers; two numbers extrapolate")
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks; needs torchrun")
    parser.add_argument("--data", type=int, help="data-parallel ranks; default: torchrun's others")
    parser.add_argument("--zero-stage", type=int, choices=(1, 2, 3), default=3)
    parser.add_argument("--sequence-parallel", action="store_true")
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE_POLICIES, help="default: all")
    parser.add_argument("--attention", nargs="+", choices=get_args(AttentionBackend), default=["auto"])
    parser.add_argument("--compile", nargs="+", choices=get_args(CompileChoice), default=["auto"])
    parser.add_argument("--micro-batch", type=int, default=1, help="sequences a rank trains on at a time")
    parser.add_argument("--micro-batches", type=int, default=1, help="accumulated in a step")
    parser.add_argument("--sequence-length", type=int, help="default: 2048, on a GPU 8192")
    parser.add_argument("--steps", type=int, help="timed steps in a round; default: 3, on a GPU 10")
    parser.add_argument("--rounds", type=int, help="turns of each variant; default: 3, on a GPU 1")
    options = parser.parse_args(argv)
    gpu, world = options.device == "cuda", int(os.environ.get("WORLD_SIZE", "1"))
    options.pixels = 64 if options.smoke else 256
    options.models = options.models or (["1b", "7b"] if gpu and not options.smoke else ["tiny"])
    options.sequence_length = options.sequence_length or (512 if options.smoke else 8192 if gpu else 2048)
    options.steps = options.steps or (2 if options.smoke else 10 if gpu else 3)
    options.rounds = options.rounds or (1 if options.smoke or gpu else 3)
    if options.recompute is None:
        options.recompute = ["none", "full"] if options.smoke else list(RECOMPUTE_POLICIES)
        options.recompute = options.recompute[-1:] if world > 1 else options.recompute
    options.data = options.data or max(world // options.tensor, 1)
    if options.tensor * options.data != world:
        parser.error(
            f"--tensor {options.tensor} x --data {options.data} needs {options.tensor * options.data} "
            f"processes, found {world}; start as many with torchrun"
        )
    variants = [options.layers or [], options.models, options.recompute, options.attention, options.compile]
    if world > 1 and any(len(values) > 1 for values in variants):
        parser.error(
            "one variant a run under torchrun: one --models, --layers, --recompute, --attention, --compile"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
