"""Each training process on the CPUs beside its GPU.

A node has several NUMA domains, each with some CPUs, memory and GPUs. A process that runs in another domain
than its GPU copies through the link between the domains: batches, offloaded weights, checkpoints. Slurm
cannot bind the ranks here: one step runs all processes of a node, and Ray or torchrun starts them. So every
rank binds itself, before it makes threads, which inherit that; memory then comes from the domain of the
thread that touches it first. Linux tells a device's CPUs in /sys, nvidia-smi which device a GPU is.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import torch

_BUS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])")
_DEVICES = Path("/sys/bus/pci/devices")


def bind_near_gpu(device: torch.device) -> str | None:
    """Keep this thread, and those that it starts, on the CPUs beside its GPU.

    Returns:
        What was done or why nothing was, in a line; None where there is no GPU.
    """
    if device.type != "cuda":
        return None
    return bind(str(torch.cuda.get_device_properties(device).uuid))


def bind(uuid: str, devices: Path = _DEVICES) -> str:
    """As `bind_near_gpu`, for the GPU with this id.

    Args:
        uuid: Of the GPU, without `GPU-`.
        devices: Where Linux lists the devices of the PCI bus.
    """
    address = _address(uuid)
    if address is None:
        return f"CPUs as they were: nvidia-smi does not tell where GPU {uuid} is"
    path = devices / address / "local_cpulist"
    try:
        near = parse_cpus(path.read_text())
    except (OSError, ValueError) as error:
        return f"CPUs as they were: {path}: {error}"
    allowed = near & os.sched_getaffinity(0)
    if not allowed:
        return f"CPUs as they were: none of those beside GPU {address} may be used by this process"
    os.sched_setaffinity(0, allowed)
    return f"bound to {len(allowed)} CPUs beside GPU {address}"


def parse_cpus(text: str) -> set[int]:
    """`0-3,8` -> {0, 1, 2, 3, 8}.

    Raises:
        ValueError: Not such a list.
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _address(uuid: str) -> str | None:
    """Name of the GPU on the PCI bus, as Linux writes it; None: unknown."""
    command = ["nvidia-smi", f"--id=GPU-{uuid}", "--query-gpu=pci.bus_id", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _BUS.fullmatch(done.stdout.strip().lower())
    return None if match is None else f"{match.group(1)[-4:]}:{match.group(2)}"
