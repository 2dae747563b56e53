"""Small vectors from the host to where attention is computed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(vector: NDArray[np.integer] | Tensor, device: torch.device) -> Tensor:
    """A host vector on a device, without waiting: neither for the copy nor for what the device is doing."""
    tensor = torch.as_tensor(vector)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # only pinned memory is copied without a stop on the host
    return tensor.to(device, non_blocking=True)
