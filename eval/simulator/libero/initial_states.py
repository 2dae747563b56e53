"""Initial states in a package's pickled numpy arrays, read without running what else they might hold."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError


def pickled_states(path: Path) -> NDArray[np.float64]:
    """Physical states float64 [N, D] of a file that torch wrote; one state [D] is a row of its own.

    Raises:
        InputError: No such file, or it holds something else than an array of numbers.
    """
    import torch
    from numpy._core.multiarray import _reconstruct  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]

    allowed = [
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        _reconstruct,
        np.ndarray,
        np.dtype,
        np.dtypes.Float64DType,
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            states = np.asarray(torch.load(path, weights_only=True), dtype=np.float64)
    except (OSError, pickle.UnpicklingError, RuntimeError, ValueError, TypeError) as error:
        cause = str(error).splitlines()[0]
        raise InputError(f"{path}: no initial states ({cause}); reinstall the package it is of") from error
    if states.ndim not in (1, 2) or states.size == 0:
        raise InputError(f"{path}: initial states of shape {states.shape}, expected [N, D]")
    return np.atleast_2d(states)
