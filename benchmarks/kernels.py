"""Launches of one layer's forward and backward pass, counted, not timed; no GPU is needed.

Counted while a network of a few layers runs in fp32 on the CPU, as the difference between networks of four
and of two layers: matrix products, attention, the regions that torch.compile makes of the element-wise
functions (`pretrain.model.pointwise`), and every other operation that reads or writes a tensor ("eager"),
such as sums of gradients. Dropout outside of a region counts as one, as on a GPU. A region may be several
kernels (docs/measurements.md); one with dropout also launches the draw of its seed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from benchmarks.report import Column, Report, arguments
from pretrain.model import pointwise
from pretrain.model.attention.causal import CausalMask
from pretrain.model.config import RECOMPUTE_POLICIES, ModelConfig
from pretrain.model.transformer import Transformer

NETWORKS = {
    "7b": ModelConfig(256, hidden_size=64, ffn_size=96, layers=2, heads=4, max_positions=32),
    "34b": ModelConfig(
        256,
        hidden_size=64,
        ffn_size=96,
        layers=2,
        heads=4,
        key_value_heads=2,
        swin_norm=True,
        max_positions=32,
    ),
}
KINDS = ("products", "attention", "regions", "eager")
_TOKENS = 32
_MORE_LAYERS = 2
_NOT_LAUNCHED = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "prim::")


def main(argv: Sequence[str] | None = None) -> int:
    """Count and report."""
    options = arguments("kernels", __doc__).parse_args(argv)
    columns = [
        Column("network", "form of"),
        Column("recompute", "recompute"),
        Column("pass", "pass"),
        *(Column(kind, kind) for kind in KINDS),
        Column("all", "all"),
    ]
    report = Report(
        "kernels", "Launches of one layer, dropout on, element-wise functions compiled", columns, "cpu"
    )
    for name, config in NETWORKS.items():
        for policy in RECOMPUTE_POLICIES:
            for direction, counts in layer_launches(replace(config, recompute=policy)).items():
                row = {kind: counts[kind] for kind in KINDS}
                report.add(network=name, recompute=policy, **{"pass": direction}, **row, all=counts.total())
    report.note("counts, not times: nothing here was measured on a GPU")
    report.finish(options.out)
    return 0


def layer_launches(config: ModelConfig) -> dict[str, Counter[str]]:
    """Launches of one layer by kind, of the passes `forward` and `backward`."""
    few, more = (
        _launches(replace(config, layers=layers, compile="on"))
        for layers in (config.layers, config.layers + _MORE_LAYERS)
    )
    return {
        direction: Counter(
            {kind: (more[direction][kind] - few[direction][kind]) // _MORE_LAYERS for kind in KINDS}
        )
        for direction in few
    }


def _launches(config: ModelConfig) -> dict[str, Counter[str]]:
    """Launches of the whole network but for its head."""
    decoder = Transformer(config).train().model
    ids = torch.zeros(1, _TOKENS, dtype=torch.int64)
    positions = torch.arange(_TOKENS)[None]
    with _Counting() as forward:
        hidden = decoder(ids, positions, CausalMask())
    with _Counting() as backward:
        torch.autograd.backward(hidden, torch.ones_like(hidden))
    return {"forward": forward.counts, "backward": backward.counts}


class _Counting(TorchDispatchMode):
    """Within its context counts operations by kind; what a region consists of is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._in_region = False
        # On a CPU dropout is several operations; on a GPU it is this one.
        dropout = lambda x, p, training: torch.native_dropout(x, p, training)[0] if training else x  # noqa: E731
        self._patches = (
            patch.object(pointwise, "_compile", self._as_region),
            patch.object(F, "dropout", dropout),
        )

    def __enter__(self) -> _Counting:
        for each in self._patches:
            each.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for each in self._patches:
            each.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not (self._in_region or func.is_view or name.startswith(_NOT_LAUNCHED)):
            self.counts[_kind(name)] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def region(self) -> Iterator[None]:
        """One launch, whatever is computed within."""
        self.counts["regions"] += 1
        self._in_region = True
        yield
        self._in_region = False

    def _as_region(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs, **settings: _Region.apply(function, settings, *inputs)


def _kind(name: str) -> str:
    if name in ("aten::mm", "aten::addmm", "aten::bmm"):
        return "products"
    return "attention" if "scaled_dot_product" in name else "eager"


class _Region(Function):
    """A function and its gradient, each as one region of the counting mode that is active."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], settings: dict[str, Any], *inputs: Tensor) -> Any:
        ctx.function, ctx.settings = function, settings
        ctx.save_for_backward(*inputs)
        with _active().region():
            return function(*inputs, **settings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        saved = ctx.saved_tensors  # a checkpoint computes them here: not within the region
        with _active().region(), torch.enable_grad():
            needed = ctx.needs_input_grad[2:]
            inputs = [each.detach().requires_grad_(need) for each, need in zip(saved, needed, strict=True)]
            results = ctx.function(*inputs, **ctx.settings)
            found = iter(
                torch.autograd.grad(results, [each for each in inputs if each.requires_grad], gradients)
            )
        return None, None, *(next(found) if need else None for need in needed)


def _active() -> _Counting:
    mode = _get_current_dispatch_mode()
    assert isinstance(mode, _Counting)
    return mode


if __name__ == "__main__":
    sys.exit(main())
