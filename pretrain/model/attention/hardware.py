"""Device, compute capability and packages, which decide on the attention backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import torch

from pretrain.model.attention.packages import foreign_files, import_error, installed_version

TRITON = "triton"
FLASH_ATTENTION_2 = "flash-attn"
FLASH_ATTENTION_4 = "flash-attn-4"
FLASH_4_GENERATIONS = (9, 10, 11)  # it compiles for 8.x and 12.x too, but without block sparsity


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware and packages that attention runs on.

    Attributes:
        device: `cpu`, `cuda` or another device type of torch.
        capability: CUDA compute capability: (8, 0) is A100, (9, 0) H100 and H200, (10, 0) B200.
        packages: Installed kernel packages and their versions.
        faults: What is wrong with an installed package and what to do, by its name.
    """

    device: str
    capability: tuple[int, int] = (0, 0)
    packages: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Description for messages."""
        if self.device != "cuda":
            return f"the {self.device} device"
        return "a CUDA device of compute capability " + ".".join(map(str, self.capability))


@cache
def detect(device: torch.device) -> Hardware:
    """The hardware of a device.

    Packages are looked up by name; flash-attn-4 is imported on the GPUs that it runs on.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    packages: dict[str, str] = {}
    for package in (TRITON, FLASH_ATTENTION_2, FLASH_ATTENTION_4):
        if (version := installed_version(package)) is not None:
            packages[package] = version
    faults: dict[str, str] = {}
    if capability[0] in FLASH_4_GENERATIONS and (fault := flash_4_fault(packages)):
        faults[FLASH_ATTENTION_4] = fault
    return Hardware(device.type, capability, packages, faults)


def flash_4_fault(packages: Mapping[str, str]) -> str | None:
    """What is wrong with an installed flash-attn-4 and what to do; None: nothing, or it is not installed.

    Args:
        packages: As in `Hardware`.
    """
    installed = packages.get(FLASH_ATTENTION_4)
    if installed is None:
        return None
    again = f"run `pip install --force-reinstall --no-deps {FLASH_ATTENTION_4}=={installed}`"
    if files := foreign_files(FLASH_ATTENTION_4, "flash_attn/cute"):
        other = packages.get(FLASH_ATTENTION_2)
        cause = f" (flash-attn {other} brings files of the same names)" if other else ""
        return (
            f"{len(files)} files of flash-attn-4 {installed} are missing or were overwritten, {files[0]} "
            f"first{cause}; {again}, after flash-attn"
        )
    if error := import_error("flash_attn.cute"):
        return (
            f"flash-attn-4 {installed} cannot be imported ({error}); install the versions that it needs with "
            "`pip install -e '.[cuda]'`"
        )
    return None
