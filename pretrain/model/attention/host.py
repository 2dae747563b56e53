"""Transfer of small vectors from the host to the device of attention."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(vector: NDArray[np.generic] | Tensor, device: torch.device) -> Tensor:
    """Copy a host vector to a device without synchronising, with the same shape and dtype."""
    tensor = torch.as_tensor(vector)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # only pinned memory is copied asynchronously
    return tensor.to(device, non_blocking=True)
