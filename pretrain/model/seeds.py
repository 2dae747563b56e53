"""Random numbers that depend on a name alone."""

from __future__ import annotations

import hashlib

import torch


def seed_of(name: str) -> int:
    """A seed of 64 bits that belongs to a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the random numbers of this process on the host and on a device."""
    # Not `torch.manual_seed`: it writes out the stack for each kind of device that is not in use (9 ms).
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
