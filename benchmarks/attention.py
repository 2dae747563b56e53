"""Attention under WorldVLA's mask on each backend, against plain causal attention and a dense mask.

Sequences hold one action sample (two frames of 276 tokens, five actions) for each world sample, as at
256 px; or, in the rows "one", a single action sample as long as the sequence, whose mask is nearly
causal: what a kernel loses by the mask alone.

TFLOP/s count the visible pairs of tokens: 4 x pairs x heads x head size forward, 2.5 times
that backward. Ratios are times: "x causal" is the fastest causal attention's time by the row's, both
forward and backward; "x dense" the same of torch's attention with a dense mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.packed import LAYOUTS, packed_row, visible_pairs
from benchmarks.report import Column, Report, arguments, peak_memory, seconds_of
from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.causal import CausalMask
from pretrain.model.attention.choose import packed_mask, unsupported_reason
from pretrain.model.attention.hardware import FLASH_ATTENTION_2, FLASH_ATTENTION_4, detect
from pretrain.model.config import AttentionBackend, ModelConfig

MASKED: tuple[AttentionBackend, ...] = ("flash", "flex", "flash2", "sdpa")
TARGET_TOKENS = 8192

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """Shape of the attention: one sequence of `tokens`."""

    tokens: int
    heads: int
    shared: int
    size: int
    device: torch.device
    dtype: torch.dtype

    def config(self, backend: AttentionBackend) -> ModelConfig:
        """A model with these heads."""
        return ModelConfig(
            hidden_size=self.heads * self.size,
            heads=self.heads,
            key_value_heads=self.shared,
            attention=backend,
        )

    def tensors(self) -> list[Tensor]:
        """Random queries, keys, values and gradient, in the memory layout of the layers."""
        generator = torch.Generator(self.device).manual_seed(0)
        return [
            torch.randn(1, self.tokens, n, self.size, generator=generator, device=self.device)
            .to(self.dtype)
            .transpose(1, 2)
            for n in (self.heads, self.shared, self.shared, self.heads)
        ]


def causal_attentions(shape: Shape) -> Iterator[tuple[str, Attend | str]]:
    """Every plain causal attention of this machine, or the reason why it is missing."""
    if shape.device.type != "cuda":
        yield "causal, torch", CausalMask().attend
        return
    query, key, value, _ = shape.tensors()
    parameters = SDPAParams(query, key, value, None, 0.0, True, shape.heads != shape.shared)
    for kernel, supported in (("flash", can_use_flash_attention), ("cuDNN", can_use_cudnn_attention)):
        missing = "torch has no such kernel for these shapes on this GPU"
        yield f"causal, torch {kernel}", _torch_causal(kernel) if supported(parameters) else missing
    hardware = detect(shape.device)
    for package, module in ((FLASH_ATTENTION_2, "flash_attn"), (FLASH_ATTENTION_4, "flash_attn.cute")):
        name = f"causal, {package}"
        if package not in hardware.packages:
            yield name, f"the package {package} is not installed"
        else:
            yield name, _flash_causal(module)


def _torch_causal(kernel: str) -> Attend:
    backend = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}[kernel]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return CausalMask().attend(query, key, value)

    return attend


def _flash_causal(module: str) -> Attend:
    function = import_module(module).flash_attn_func

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = function(*(x.transpose(1, 2) for x in (query, key, value)), causal=True)
        return (result[0] if isinstance(result, tuple) else result).transpose(1, 2)

    return attend


def times(attend: Attend, shape: Shape) -> tuple[float, float]:
    """Seconds forward, and forward and backward."""
    query, key, value, gradient = shape.tensors()

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(query, key, value)

    inputs = [x.detach().requires_grad_() for x in (query, key, value)]

    def both() -> object:
        return torch.autograd.grad(attend(inputs[0], inputs[1], inputs[2]), inputs, gradient)

    device = shape.device.type
    return seconds_of(forward, device), seconds_of(both, device)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the JSON file."""
    options = _options(argv)
    device = torch.device(options.device)
    report = Report(
        "attention", "Attention under WorldVLA's mask", _columns(), options.device, out=options.out
    )
    best = _Best()
    for tokens in options.tokens:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        shape = Shape(tokens, options.heads, options.key_value_heads, options.head_size, device, dtype)
        for layout in LAYOUTS:
            _add_rows(report, shape, layout, best, options.attention)
    _targets(report, best)
    report.note(
        f"{options.heads} heads of {options.head_size} over {options.key_value_heads} of keys and values, "
        f"{'bf16' if device.type == 'cuda' else 'fp32'}; masks are made once a micro-batch, not once a layer"
    )
    report.finish(options.out)
    return 0


class _Best:
    """The best ratios at the length of the targets, of each layout."""

    def __init__(self) -> None:
        self.causal: dict[str, float] = {}
        self.dense: dict[str, float] = {}

    def update(self, layout: str, causal: float, dense: float) -> None:
        self.causal[layout] = max(causal, self.causal.get(layout, 0.0))
        self.dense[layout] = max(dense, self.dense.get(layout, 0.0))


@dataclass
class _Measured:
    """What was measured of one length and layout, by the name of the attention.

    Attributes:
        seconds: Forward, and forward and backward.
        masks: Seconds and bytes to build the mask.
        reasons: Why something was not measured.
    """

    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    masks: dict[str, tuple[float, int]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def _measure(
    shape: Shape, segments: np.ndarray, blocks: np.ndarray, backends: Sequence[AttentionBackend]
) -> _Measured:
    torch.compiler.reset()  # each length is compiled; the number of compiled versions is limited
    measured = _Measured()
    for name, attend in causal_attentions(shape):
        if isinstance(attend, str):
            measured.reasons[name] = attend
        else:
            measured.seconds[name] = times(attend, shape)
    for name in backends:
        reason = unsupported_reason(name, detect(shape.device), shape.dtype, shape.size)
        if reason is not None:
            measured.reasons[name] = reason
            continue

        def build(name: AttentionBackend = name) -> AttentionMask:
            return packed_mask(segments, blocks, shape.config(name), shape.device, shape.dtype)

        device = shape.device.type
        measured.masks[name] = seconds_of(build, device), peak_memory(build, device)
        measured.seconds[name] = times(build().attend, shape)
    return measured


def _add_rows(
    report: Report, shape: Shape, layout: str, best: _Best, backends: Sequence[AttentionBackend]
) -> None:
    segments, blocks = packed_row(layout, shape.tokens)
    measured = _measure(shape, segments, blocks, backends)
    causal = min(both for name, (_, both) in measured.seconds.items() if name.startswith("causal"))
    dense = measured.seconds["sdpa"][1]
    visible = {True: shape.tokens * (shape.tokens + 1) // 2, False: visible_pairs(segments, blocks)}
    for name in (*measured.seconds, *measured.reasons):
        plain = name.startswith("causal")
        time, mask = measured.seconds.get(name), measured.masks.get(name)
        teraflops = 4e-12 * visible[plain] * shape.heads * shape.size
        report.add(
            layout=layout,
            tokens=shape.tokens,
            attention="sdpa, dense mask" if name == "sdpa" else name,
            forward=time and time[0] * 1e3,
            both=time and time[1] * 1e3,
            forward_rate=time and teraflops / time[0],
            both_rate=time and 3.5 * teraflops / time[1],
            causal=time and causal / time[1],
            dense=time and dense / time[1],
            mask="-" if plain else mask and mask[0] * 1e3,
            memory="-" if plain else mask and mask[1] / 2**20,
        )
        if time and name in MASKED[:-1] and shape.tokens == TARGET_TOKENS:
            best.update(layout, causal / time[1], dense / time[1])
    for name, reason in measured.reasons.items():
        if f"{name}: {reason}" not in report.notes:
            report.note(f"{name}: {reason}")


def _targets(report: Report, best: _Best) -> None:
    for layout in LAYOUTS:
        text = f"0.9 x causal FlashAttention at {TARGET_TOKENS:,} tokens, layout {layout!r}"
        ratio = best.causal.get(layout)
        report.target(text, None if ratio is None else ratio >= 0.9, ratio)
    ratio = best.dense.get("packed")
    text = f"5 x dense-mask SDPA at {TARGET_TOKENS:,} tokens"
    report.target(text, None if ratio is None else ratio >= 5, ratio)


def _columns() -> list[Column]:
    return [
        Column("layout", "layout"),
        Column("tokens", "tokens"),
        Column("attention", "attention"),
        Column("forward", "forward", "ms"),
        Column("both", "+ backward", "ms"),
        Column("forward_rate", "forward", "TFLOP/s"),
        Column("both_rate", "+ backward", "TFLOP/s"),
        Column("causal", "x causal"),
        Column("dense", "x dense"),
        Column("mask", "mask", "ms"),
        Column("memory", "mask", "MiB"),
    ]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments("attention", __doc__)
    parser.add_argument("--tokens", type=int, nargs="+", help="default 1 k to 16 k, on the CPU 1 k and 2 k")
    parser.add_argument(
        "--attention", nargs="+", choices=MASKED, default=MASKED, help="backends besides sdpa; default: all"
    )
    parser.add_argument("--heads", type=int, help="default 32, on the CPU 4")
    parser.add_argument("--key-value-heads", type=int, help="default: as many as heads")
    parser.add_argument("--head-size", type=int, help="default 128, on the CPU 32")
    options = parser.parse_args(argv)
    gpu = options.device == "cuda" and not options.smoke
    sizes = (1024, 2048, 4096, 8192, 16_384) if gpu else (2048,) if options.smoke else (1024, 2048)
    options.tokens = options.tokens or sizes
    options.attention = dict.fromkeys((*options.attention, "sdpa"))  # the reference of "x dense"
    options.heads = options.heads or (32 if gpu else 2 if options.smoke else 4)
    options.key_value_heads = options.key_value_heads or options.heads
    options.head_size = options.head_size or (128 if gpu else 32)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
