"""Device, compute capability and packages, which decide on the attention backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

TRITON = "triton"
FLASH_ATTENTION_2 = "flash-attn"
FLASH_ATTENTION_4 = "flash-attn-4"


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware and packages that attention runs on.

    Attributes:
        device: `cpu`, `cuda` or another device type of torch.
        capability: CUDA compute capability: (8, 0) is A100, (9, 0) H100 and H200, (10, 0) B200.
        packages: Installed kernel packages and their versions.
    """

    device: str
    capability: tuple[int, int] = (0, 0)
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Description for messages."""
        if self.device != "cuda":
            return f"the {self.device} device"
        return "a CUDA device of compute capability " + ".".join(map(str, self.capability))


@cache
def detect(device: torch.device) -> Hardware:
    """The hardware of a device. Packages are looked up by name, not imported."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    packages: dict[str, str] = {}
    for package in (TRITON, FLASH_ATTENTION_2, FLASH_ATTENTION_4):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return Hardware(device.type, capability, packages)
