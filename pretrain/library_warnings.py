"""What the libraries below us say that nobody here can act on."""

from __future__ import annotations

import warnings


def silence_known_warnings() -> None:
    """Leave out warnings that would come once a call site and rank.

    DeepSpeed calls collectives by names that torch renamed; megatron tells that optional packages are
    missing, whose parts of it are not used here; torch tells that a rank plans its part of a checkpoint
    alone.
    """
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", r"torch.distributed is disabled, unavailable or uninit", UserWarning)
    warnings.filterwarnings("ignore", r"Transformer Engine and Apex are not installed", UserWarning)
