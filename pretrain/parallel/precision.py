"""The dtype of weights and activations under each `trainer.precision`."""

from __future__ import annotations

import torch

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
