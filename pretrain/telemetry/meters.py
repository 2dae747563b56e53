"""How fast the training is: peak FLOP/s of a device, and the time of steps.

The operations of a step are counted by `pretrain.planner.flops`.
"""

from __future__ import annotations

import time

import torch

from pretrain.planner.gpus import known_peak_flops

_PROBE_SIDE = 512
_PROBE_SECONDS = 0.2


def peak_flops(device: torch.device, precision: str) -> float:
    """Peak FLOP/s of this rank's device: known by name, else measured with a short matrix product.

    On a CPU the ranks share the cores: let all measure at the same time and add.

    Args:
        device: Where the rank computes.
        precision: `bf16` or `fp32`.
    """
    if device.type == "cuda":
        known = known_peak_flops(torch.cuda.get_device_name(device), precision)
        if known is not None:
            return known
    return _measured_flops(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    side = _PROBE_SIDE if device.type == "cpu" else 16 * _PROBE_SIDE
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    _product(matrix)
    best, end = float("inf"), time.perf_counter() + _PROBE_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        _product(matrix)
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best


def _product(matrix: torch.Tensor) -> None:
    (matrix @ matrix)[0, 0].item()  # waits for the result
