"""How fast the training is: tokens per second and model FLOP/s utilisation (MFU).

    FLOPs of a step = 6 N t + 6 V h l + 12 L h p
    MFU             = FLOPs of the step / (seconds of the step * peak FLOP/s of all ranks)

N parameters of the layers (embedding and head left out), t tokens without padding, V vocabulary, h
hidden size, l labelled positions (only they pass the head), L layers, p pairs (query, key) of causal
attention within the samples. 6 = 2 FLOPs a multiply-add x (1 forward + 2 backward); 12 = the same for
the two products of attention. Recomputation is not counted: it is the model's work, not the machine's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from data.contracts import PackedBatch
from data.tokens.vocabulary import IGNORED_LABEL
from pretrain.model.config import ModelConfig

# Dense peak in TFLOP/s (bf16, fp32 without TF32) by a part of the device's name, the special before the
# general. Source: the vendors' data sheets.
_PEAKS_TFLOPS = (
    ("B200", 2250.0, 75.0),
    ("H200", 989.4, 67.0),
    ("H100 NVL", 835.0, 60.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100", 989.4, 67.0),
    ("A100", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
)
_PROBE_SIDE = 512
_PROBE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Work:
    """What a number of packed sequences asks of the model.

    Attributes:
        tokens: Tokens without padding.
        labelled: Positions with a label.
        pairs: Pairs (query, key) of causal attention within the samples.
    """

    tokens: int = 0
    labelled: int = 0
    pairs: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.labelled + other.labelled, self.pairs + other.pairs)

    @classmethod
    def of(cls, batch: PackedBatch) -> Work:
        """Count one micro-batch, on the host."""
        real = batch.segments > 0
        return cls(
            tokens=int(real.sum()),
            labelled=int((batch.labels != IGNORED_LABEL).sum()),
            pairs=int((batch.positions[real].astype("int64") + 1).sum()),
        )

    def flops(self, model: ModelConfig) -> float:
        """Floating-point operations of forward and backward, by the formula of this module."""
        return (
            6.0 * model.layers * model.layer_matrices * self.tokens
            + 6.0 * model.vocabulary_size * model.hidden_size * self.labelled
            + 12.0 * model.layers * model.hidden_size * self.pairs
        )


def peak_flops(device: torch.device, precision: str) -> float:
    """Peak FLOP/s of this rank's device: known by name, else measured with a short matrix product.

    On a CPU the ranks share the cores: let all measure at the same time and add.

    Args:
        device: Where the rank computes.
        precision: `bf16` or `fp32`.
    """
    if device.type == "cuda":
        known = known_peak(torch.cuda.get_device_name(device), precision)
        if known is not None:
            return known
    return _measured_flops(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def known_peak(name: str, precision: str) -> float | None:
    """Peak FLOP/s of a GPU by its name, from the data sheets; None for one that is not listed."""
    for part, bf16, fp32 in _PEAKS_TFLOPS:
        if part in name:
            return 1e12 * (bf16 if precision == "bf16" else fp32)
    return None


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
