"""In which arithmetic a checkpoint's network computes."""

from __future__ import annotations

from typing import Literal

import torch

from eval.config import Precision

Arithmetic = Literal["fp32", "bf16"]

DTYPES: dict[Arithmetic, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def chosen_device(device: str | None) -> str:
    """The device that a network computes on where None takes a GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def chosen_arithmetic(precision: Precision, device: str | None) -> Arithmetic:
    """The arithmetic that a setting means on a device: `auto` takes bf16 where a GPU has it, not emulated.

    Args:
        precision: The setting.
        device: As of `chosen_device`.
    """
    if precision != "auto":
        return precision
    on_gpu = chosen_device(device).startswith("cuda")
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
