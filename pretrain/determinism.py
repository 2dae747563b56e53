"""Steps that repeat bit for bit: `trainer.deterministic`.

docs/model.md has what repeats on which device with and without it.
"""

from __future__ import annotations

import os

from data.errors import InputError

CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
# The two sizes with which cuBLAS repeats its results, by its documentation; the first is as quick as without.
CUBLAS_SIZES = (":4096:8", ":16:8")


def make_deterministic() -> None:
    """Let this process use only algorithms that repeat their results; before it first uses a GPU.

    Torch then takes such an algorithm where it has one, and an operation without one raises a RuntimeError.

    Raises:
        InputError: CUBLAS_WORKSPACE_CONFIG is set to a size with which cuBLAS does not repeat its results, or
            the process has used a GPU without it.
    """
    import torch

    size = os.environ.get(CUBLAS_VARIABLE)
    if size is not None and size not in CUBLAS_SIZES:
        raise InputError(
            f"{CUBLAS_VARIABLE}={size}: trainer.deterministic=true takes {' or '.join(CUBLAS_SIZES)}; "
            "unset it"
        )
    if size is None and torch.cuda.is_initialized():
        raise InputError(
            "trainer.deterministic=true: this process has used a GPU already, and cuBLAS reads its setting "
            f"at the first use; start it with {CUBLAS_VARIABLE}={CUBLAS_SIZES[0]}"
        )
    os.environ.setdefault(CUBLAS_VARIABLE, CUBLAS_SIZES[0])
    torch.backends.cudnn.benchmark = False  # the fastest of several algorithms would differ between starts
    torch.use_deterministic_algorithms(True)
