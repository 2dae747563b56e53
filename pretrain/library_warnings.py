"""Warnings of libraries that a user of this project can do nothing about."""

from __future__ import annotations

import warnings


def silence_known_warnings() -> None:
    """Ignore warnings that would appear once for each call site and rank.

    DeepSpeed calls collectives by names that torch has renamed; megatron reports optional packages that are
    not used here; torch reports that a rank plans its part of a checkpoint alone.
    """
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", r"torch.distributed is disabled, unavailable or uninit", UserWarning)
    warnings.filterwarnings("ignore", r"Transformer Engine and Apex are not installed", UserWarning)
