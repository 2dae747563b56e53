"""The dtype of weights and activations under each `trainer.precision`."""

from __future__ import annotations

import torch

from pretrain.config import Precision

PRECISIONS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
