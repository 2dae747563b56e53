"""The loss in blocks of the vocabulary against cross entropy of whole logits: memory and time.

Forward and backward pass of N labelled tokens, hidden size H, vocabulary V, from hidden states and weight to
both gradients. "Peak" is everything allocated besides these inputs; "beside the
weight's gradient" is the same without V x H of that, which any training needs. "Whole logits" is
torch's cross entropy of the linear layer's output in its own dtype, "whole logits, fp32" of that output
cast to fp32, as Hugging Face's models do.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import Column, Report, arguments, peak_memory, seconds_of
from pretrain.model.factory import LayerFactory
from pretrain.model.loss import LossSettings, VocabularyHead

TARGET_BYTES = 10**9
TARGET_SIZE = (8192, 65_536, 4096)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Loss = Callable[[VocabularyHead, Tensor, Tensor], Tensor]


def in_blocks(head: VocabularyHead, hidden: Tensor, labels: Tensor) -> Tensor:
    """Ours, with z-loss, class weights and telemetry."""
    normaliser = torch.full((2,), float(len(labels)), device=hidden.device)
    return head(hidden, labels, normaliser, LossSettings())[0]


def whole_logits(head: VocabularyHead, hidden: Tensor, labels: Tensor) -> Tensor:
    """Plain cross entropy."""
    return F.cross_entropy(head(hidden), labels)


def whole_logits_fp32(head: VocabularyHead, hidden: Tensor, labels: Tensor) -> Tensor:
    """Plain cross entropy of logits that are cast to fp32."""
    return F.cross_entropy(head(hidden).float(), labels)


METHODS: dict[str, Loss] = {
    "blocks": in_blocks,
    "whole logits": whole_logits,
    "whole logits, fp32": whole_logits_fp32,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = parse(argv)
    columns = [
        Column("loss", "loss"),
        Column("dtype", "dtype"),
        Column("tokens", "N"),
        Column("vocabulary", "V"),
        Column("width", "H"),
        Column("peak", "peak", "MB", digits=0),
        Column("beside", "beside the weight's gradient", "MB", digits=0),
        Column("seconds", "forward + backward", "ms", digits=1),
    ]
    report = Report(
        "loss", "Loss: blocks of the vocabulary or whole logits", columns, options.device, out=options.out
    )
    peaks: dict[tuple[str, str], int] = {}
    for name in options.dtype:
        for method in METHODS:
            if DTYPES[name] == torch.float32 and method == "whole logits, fp32":
                continue  # the same as without the cast
            row, peak = measured(method, name, options)
            report.add(**row)
            if peak is not None:
                peaks[method, name] = peak
    add_targets(report, peaks, options)
    report.finish(options.out)
    return 0


def parse(argv: Sequence[str] | None) -> Namespace:
    """Options, with sizes that fit the device."""
    parser = arguments("loss", __doc__)
    parser.add_argument("--tokens", type=int, help="default: 8192")
    parser.add_argument("--vocabulary", type=int, help="default: 65536")
    parser.add_argument("--width", type=int, help="default: 4096 on a GPU, 256 on a CPU")
    parser.add_argument("--dtype", nargs="+", choices=sorted(DTYPES), default=["bf16"])
    parser.add_argument("--memory", nargs="+", choices=sorted(METHODS), help="memory of these alone; no time")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    sizes = (8192, 65_536, 4096 if options.device == "cuda" else 256)
    if options.smoke:
        sizes, options.repeats = (1024, 16_384, 32), 1
    for key, default in zip(("tokens", "vocabulary", "width"), sizes, strict=True):
        if getattr(options, key) is None:
            setattr(options, key, default)
    return options


def measured(method: str, dtype: str, options: Namespace) -> tuple[dict[str, object], int | None]:
    """One row of the table, and the peak in bytes where it was measured."""
    N, V, H = options.tokens, options.vocabulary, options.width
    head, hidden, labels = inputs(N, V, H, DTYPES[dtype], options.device)

    def step() -> tuple[Tensor, ...]:
        loss = METHODS[method](head, hidden, labels)
        return torch.autograd.grad(loss, (hidden, head.weight))

    peak = seconds = None
    if options.memory is None or method in options.memory:
        if options.device == "cuda":
            step()  # libraries allocate workspaces once
        peak = peak_memory(step, options.device)
    if options.memory is None:
        seconds = 1e3 * seconds_of(step, options.device, options.repeats, warmup=1)
    row = {
        "loss": method,
        "dtype": dtype,
        "tokens": N,
        "vocabulary": V,
        "width": H,
        "peak": None if peak is None else peak / 1e6,
        "beside": None if peak is None else (peak - head.weight.nbytes) / 1e6,
        "seconds": seconds,
    }
    return row, peak


def inputs(N: int, V: int, H: int, dtype: torch.dtype, device: str) -> tuple[VocabularyHead, Tensor, Tensor]:
    """Head, hidden states [N, H] that require a gradient, labels [N]."""
    torch.manual_seed(0)
    head = VocabularyHead(LayerFactory(), V, H)
    values = torch.randn(V, H, dtype=dtype, device=device).mul_(H**-0.5)
    head.weight = torch.nn.Parameter(values)
    hidden = torch.randn(N, H, dtype=dtype, device=device, requires_grad=True)
    return head, hidden, torch.randint(V, (N,), device=device)


def add_targets(report: Report, peaks: dict[tuple[str, str], int], options: Namespace) -> None:
    """The memory target, and what the ratios are."""
    size = (options.tokens, options.vocabulary, options.width)
    peak = peaks.get(("blocks", "bf16")) if size == TARGET_SIZE else None
    text = "peak of 8,192 tokens x 65,536 x 4,096 in bf16 below 1,000 MB"
    report.target(text, None if peak is None else peak < TARGET_BYTES, None if peak is None else peak / 1e6)
    for (method, dtype), peak in peaks.items():
        if method != "blocks" and ("blocks", dtype) in peaks:
            ratio = peak / peaks["blocks", dtype]
            report.note(f"{dtype}: {method} take {ratio:.1f} x the memory of blocks")
    if options.memory is None and options.device == "cpu":
        report.note("on a CPU at a small H work on logits outweighs the products: not a GPU's time")


if __name__ == "__main__":
    sys.exit(main())
