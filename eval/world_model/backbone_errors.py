"""What a backbone that cannot compute raises, and the line of it that says why."""

from __future__ import annotations

import torch

NETWORK_ERRORS = (RuntimeError, torch.jit.Error)
"""What a network raises that cannot compute; TorchScript's errors are no RuntimeErrors."""


def failure_reason(error: Exception) -> str:
    """The line of an error that says the cause; TorchScript puts it last, after the code around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    causes = [line for line in lines if line.startswith("RuntimeError: ")]
    return causes[-1] if causes else lines[0]
