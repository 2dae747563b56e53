"""What a GPU can do at most: matrix products at the shapes of the 7B, and its memory's bandwidth.

A product [m, k] x [k, n] counts 2 m k n operations; a copy counts the bytes that it reads and writes. Each
measurement holds several calls, so that launching and waiting do not count. Versions of torch and CUDA are in
the JSON file's environment, the driver's in a note.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks.report import Column, Report, arguments, seconds_of

_CALLS = 10  # in one measurement
_POSITIONS, _HIDDEN, _FFN, _VOCABULARY = 8192, 4096, 11_008, 65_536  # of the 7B and its sequence
PRODUCTS = {
    "attention's output": (_POSITIONS, _HIDDEN, _HIDDEN),
    "queries, keys, values": (_POSITIONS, _HIDDEN, 3 * _HIDDEN),
    "gate and up": (_POSITIONS, _HIDDEN, 2 * _FFN),
    "down": (_POSITIONS, _FFN, _HIDDEN),
    "head": (_POSITIONS, _HIDDEN, _VOCABULARY),
    "square": (8192, 8192, 8192),
}
_COPY_BYTES = 2**31
_COLUMNS = (
    Column("what", "what"),
    Column("shape", "shape"),
    Column("milliseconds", "time", "ms", digits=3),
    Column("teraflops", "speed", "TFLOP/s", digits=0),
    Column("bandwidth", "memory", "GB/s", digits=0),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the JSON file."""
    options = arguments("gpu_ceilings", __doc__).parse_args(argv)
    device = options.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shrink = 64 if options.smoke else 1
    report = Report("gpu_ceilings", f"Ceilings, {dtype}", _COLUMNS, device, out=options.out)
    report.note(driver())
    for what, shape in PRODUCTS.items():
        m, k, n = (side // shrink for side in shape)
        left, right = (
            torch.ones(m, k, dtype=dtype, device=device),
            torch.ones(k, n, dtype=dtype, device=device),
        )
        out = torch.empty(m, n, dtype=dtype, device=device)
        seconds = _seconds(lambda left=left, right=right, out=out: torch.mm(left, right, out=out), device)
        _add(report, what, f"{m} x {k} x {n}", seconds, teraflops=2e-12 * m * k * n / seconds)
    source = torch.ones(_COPY_BYTES // shrink**2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    _add(report, "copy", f"{source.nbytes} bytes", seconds, bandwidth=2e-9 * source.nbytes / seconds)
    report.finish(options.out)
    return 0


def driver() -> str:
    """The GPU's driver, memory, clock and power limit as `nvidia-smi` gives them."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return "driver: no nvidia-smi here"
    query = "driver_version,memory.total,clocks.max.sm,power.limit"
    words = [command, f"--query-gpu={query}", "--format=csv,noheader"]
    asked = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", check=False)
    return f"{query}: {(asked.stdout or asked.stderr).strip()}"


def _seconds(function: Callable[[], object], device: str) -> float:
    def several() -> None:
        for _ in range(_CALLS):
            function()

    return seconds_of(several, device) / _CALLS


def _add(
    report: Report,
    what: str,
    shape: str,
    seconds: float,
    teraflops: float | None = None,
    bandwidth: float | None = None,
) -> None:
    report.add(what=what, shape=shape, milliseconds=1e3 * seconds, teraflops=teraflops, bandwidth=bandwidth)


if __name__ == "__main__":
    sys.exit(main())
