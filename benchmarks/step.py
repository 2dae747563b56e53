"""A whole training step through the engine: forward, backward, gradient reduction, clipping and AdamW.

    FLOPs of a step = 6 N t + 6 V h l + 12 L h p                      (pretrain.planner.flops)
    MFU             = FLOPs of the step / (seconds of the step * peak FLOP/s of all ranks)

N parameters of the layers, t tokens without padding, V vocabulary, h hidden size, l labelled positions, L
layers, p pairs (query, key) of causal attention within the samples; recomputation is not counted. Batches are
packed WorldVLA sequences of random 256-pixel frames (M = 2, K = 5, as many action as world samples), the
same in every step. Peak FLOP/s: the vendor's dense bf16 figure; on a CPU a measured matrix product.

One process trains alone; `torchrun --nproc-per-node 8 -m benchmarks.step --tensor 2 ...` measures several
GPUs, one variant a run (the ranks that are not tensor parallel are data parallel). AdamW in mixed precision
takes 16 bytes a parameter: 112 GB for 7B, more than a GPU of 80 GB has. On one, fewer layers of the same
shape are trained, as many as leave room for activations (or `--layers`), and the table says how many.
Their MFU stands for that of all layers, since each layer costs the same; only embedding and head weigh
more. Several GPUs measure the whole.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch

from benchmarks.processes import run_in_processes
from benchmarks.report import Column, Report, arguments
from benchmarks.step_run import Case, Measured, measure
from pretrain.config import ParallelConfig, Precision, TrainerConfig, TrainingConfig
from pretrain.model.config import RECOMPUTE_POLICIES, AttentionBackend, CompileChoice, ModelConfig
from pretrain.settings import named_models

_STATE_BYTES = 16  # a parameter: weight and gradient in bf16, master and two moments in fp32
_STATE_SHARE = 0.6  # of a GPU's memory, when layers are left out
_TARGET = 0.5
_HELD = Column("held", "held", "GB", digits=1)
_COLUMNS = (
    Column("variant", "variant"),
    Column("seconds", "median", "s", digits=3),
    Column("spread", "spread", "%", digits=0),
    Column("tokens_per_second", "tokens", "1/s", digits=0),
    Column("teraflops", "a rank", "TFLOP/s", digits=2),
    Column("mfu", "MFU", "%", digits=1),
    Column("added", "added", "GB", digits=3),
    Column("relative", "speed", "x first", digits=2),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(argv)
    cases = list(_cases(options))
    columns = _COLUMNS if options.device == "cpu" else (*_COLUMNS[:-2], _HELD, *_COLUMNS[-2:])
    report = Report("step", _title(cases[0]), columns, options.device)
    first: dict[str, Measured] = {}
    results = _measure_all(cases, options.rounds)
    peak = max((measured.peak_flops for measured in results if measured is not None), default=0.0)
    for case, measured in zip(cases, results, strict=True):
        if measured is None:
            report.note(f"{_variant(case, None)}: out of memory")
        elif case.model not in first:
            first[case.model] = measured
        row = _row(case, measured, first.get(case.model), peak)
        report.add(**{column.key: row.get(column.key) for column in columns})
    _add_target(report, options.device)
    report.note("variant: model, layers, attention, recompute; speed: against the model's first variant")
    report.note("tokens: without padding, over all ranks; spread: of the steps, as a share of the median")
    report.note("added: most that a step holds above what is held between steps")
    if options.device == "cpu":
        report.note("MFU: of a matrix product's speed on this machine, the fastest measured")
    if os.environ.get("RANK", "0") == "0":
        report.finish(options.out)
    return 0


def _title(case: Case) -> str:
    trainer, parallel = case.config.trainer, case.config.parallel
    return (
        f"Training step, {trainer.precision}: {trainer.global_batch} x {trainer.sequence_length} positions, "
        f"micro-batches of {trainer.micro_batch}; tensor {parallel.tensor}"
        f"{' with sequence parallel' if parallel.sequence_parallel else ''} x data {parallel.data}, "
        f"ZeRO-{parallel.zero_stage}"
    )


def _measure_all(cases: Sequence[Case], rounds: int) -> list[Measured | None]:
    """Measure in this process under torchrun, otherwise each variant in a process of its own.

    The variants take turns, round after round, so that a busy machine slows all of them.
    """
    if "RANK" in os.environ:
        return [measure(case) for case in cases]
    turns = [[run_in_processes(measure, [(case,)])[0] for case in cases] for _ in range(rounds)]
    return [_joined([turn[number] for turn in turns]) for number in range(len(cases))]


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
        layers = options.layers or _layers_that_fit(whole, options.device, ranks)
        for attention, compiled, recompute in itertools.product(
            options.attention, options.compile, options.recompute
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


def _layers_that_fit(model: ModelConfig, device: str, ranks: int) -> int:
    """As many layers as leave room for activations on each GPU."""
    if device == "cpu":
        return model.layers
    room = _STATE_SHARE * torch.cuda.get_device_properties(0).total_memory * ranks / _STATE_BYTES
    room -= 2 * model.vocabulary_size * model.hidden_size
    return max(1, int(room / (4 * model.hidden_size**2 + 3 * model.hidden_size * model.ffn_size)))


def _variant(case: Case, measured: Measured | None) -> str:
    model = case.config.model
    attention = model.attention if measured is None else measured.attention
    compiled = "" if model.compile == "auto" else f", compile {model.compile}"
    return f"{case.model} {model.layers}/{case.all_layers} layers, {attention}, {model.recompute}{compiled}"


def _ranks(case: Case) -> int:
    return case.config.parallel.tensor * case.config.parallel.data


def _row(case: Case, measured: Measured | None, first: Measured | None, peak: float) -> dict[str, Any]:
    if measured is None or first is None:
        return {"variant": _variant(case, None)}
    seconds = statistics.median(measured.seconds)
    flops = measured.work.flops(case.config.model)
    return {
        "variant": _variant(case, measured),
        "seconds": seconds,
        "spread": 100 * (max(measured.seconds) - min(measured.seconds)) / seconds,
        "tokens_per_second": measured.work.tokens / seconds,
        "teraflops": flops / seconds / _ranks(case) / 1e12,
        "mfu": 100 * flops / (seconds * peak),
        "held": None if measured.held is None else measured.held / 1e9,
        "added": measured.added / 1e9,
        "relative": statistics.median(first.seconds) / seconds,
    }


def _add_target(report: Report, device: str) -> None:
    """Half of the peak with 7B on one H100 or H200."""
    hopper = device == "cuda" and any(name in torch.cuda.get_device_name() for name in ("H100", "H200"))
    measured = [
        row["mfu"] for row in report.rows if row["variant"].startswith("7b ") and row["mfu"] is not None
    ]
    best = max(measured) if hopper and measured else None
    met = None if best is None else best >= 100 * _TARGET
    report.target("7B (layers as in the table) on an H100 or H200, bf16: MFU of 50 % or better", met, best)


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
    parser.add_argument("--layers", type=int, help="train so many of the model's layers")
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
    variants = [options.models, options.recompute, options.attention, options.compile]
    if world > 1 and any(len(values) > 1 for values in variants):
        parser.error(
            "one variant a run under torchrun; give one --models, --recompute, --attention, --compile"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
