"""Start of a training, part by part: imports, process groups, weights, the first step and one after it.

A fresh process of one rank; every part is timed to its end on the device. *Imports*: the interpreter's start
and what the trainer imports (torch, DeepSpeed). *Weights*: build and partition the network, draw its first
weights and make the optimiser's state. The *first step* compiles kernels, or finds them in the caches of
`pretrain.compile_caches`; the *second* does not. A GPU that is too small for the whole network gets as many
layers as fit; the table says how many.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from benchmarks.report import Column, Report, arguments
from benchmarks.start_up_run import MARK
from benchmarks.step import layers_that_fit
from pretrain.model.config import CompileChoice
from pretrain.settings import named_models

READY = "imports to weights"
LIMIT_SECONDS = 60.0
_ROOT = Path(__file__).resolve().parents[1]
_STATE_SHARE = 0.85  # of a GPU's memory: activations of one sequence, recomputed, are small
_COLUMNS = (
    Column("model", "model"),
    Column("layers", "layers"),
    Column("all_layers", "all layers"),
    Column("part", "part"),
    Column("seconds", "time", "s", digits=1),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the JSON file."""
    parser = arguments("start_up", __doc__)
    parser.add_argument("--model", choices=list(named_models()), help="default: tiny, on a GPU 7b")
    parser.add_argument("--layers", type=int, help="default: all that fit")
    parser.add_argument("--compile", choices=get_args(CompileChoice), default="auto", help="default: auto")
    options = parser.parse_args(argv)
    gpu = options.device == "cuda" and not options.smoke
    name = options.model or ("7b" if gpu else "tiny")
    whole = named_models()[name]
    fitting = layers_that_fit(whole, options.device, 1, _STATE_SHARE)
    layers = min(options.layers or fitting, whole.layers)
    report = Report("start_up", "Start of a training, one rank", _COLUMNS, options.device, out=options.out)
    about = {"model": name, "layers": layers, "all_layers": whole.layers}
    ready = 0.0
    for part, seconds in _parts(name, layers, options.device, 8192 if gpu else 512, options.compile):
        report.add(**about, part=part, seconds=seconds)
        ready += seconds
        if part == "weights":
            report.add(**about, part=READY, seconds=ready)
    counts = gpu and name == "7b" and layers == whole.layers
    seconds = next((row["seconds"] for row in report.rows if row["part"] == READY), None) if counts else None
    met = None if seconds is None else seconds < LIMIT_SECONDS
    report.target(f"7B on a GPU: {READY} in less than {LIMIT_SECONDS:.0f} s", met, seconds)
    report.finish(options.out)
    return 0


def _parts(name: str, layers: int, device: str, length: int, compiled: str) -> Iterator[tuple[str, float]]:
    """Each part and its seconds, as soon as it has ended."""
    words = [sys.executable, "-m", "benchmarks.start_up_run", name, str(layers), device]
    words += [str(length), compiled]
    before = time.time()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, cwd=_ROOT, encoding="utf-8", errors="replace"
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith(MARK):
                said = json.loads(line.removeprefix(MARK))
                yield said["part"], said["time"] - before
                before = said["time"]
            else:
                print(line, end="")
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, words)


if __name__ == "__main__":
    sys.exit(main())
