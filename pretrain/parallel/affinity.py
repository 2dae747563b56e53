"""CPU affinity: each training process runs on the CPUs of its GPU's NUMA domain.

A node has several NUMA domains, each with some CPUs, memory and GPUs. A process in another domain than its
GPU copies batches, offloaded weights and checkpoints over the link between the domains. Slurm cannot bind
the ranks: one step runs all processes of a node, and Ray or torchrun starts them. So every rank binds
itself before it starts threads, which inherit the affinity; memory is then allocated in the domain of the
thread that touches it first. A device's CPUs are in /sys, a GPU's PCI address comes from nvidia-smi.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import torch

_BUS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])")
_DEVICES = Path("/sys/bus/pci/devices")


def bind_to_gpu_cpus(device: torch.device) -> str | None:
    """Bind this thread, and those that it starts, to the CPUs of its GPU's NUMA domain.

    Returns:
        What was done, or why nothing was, in one line; None without a GPU.
    """
    if device.type != "cuda":
        return None
    return bind(str(torch.cuda.get_device_properties(device).uuid))


def bind(uuid: str, devices: Path = _DEVICES) -> str:
    """As `bind_to_gpu_cpus`, for the GPU with the given id.

    Args:
        uuid: Of the GPU, without `GPU-`.
        devices: Folder in which Linux lists the devices of the PCI bus.
    """
    address = _address(uuid)
    if address is None:
        return f"CPU affinity unchanged: nvidia-smi gives no PCI address of GPU {uuid}"
    path = devices / address / "local_cpulist"
    try:
        local = parse_cpus(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"CPU affinity unchanged: {path}: {error}"
    allowed = local & os.sched_getaffinity(0)
    if not allowed:
        return f"CPU affinity unchanged: this process may use none of the CPUs of GPU {address}"
    os.sched_setaffinity(0, allowed)
    return f"bound to the {len(allowed)} CPUs of GPU {address}"


def parse_cpus(text: str) -> set[int]:
    """Parse a CPU list: `0-3,8` -> {0, 1, 2, 3, 8}.

    Raises:
        ValueError: The text has another form.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def _address(uuid: str) -> str | None:
    """PCI address of the GPU in Linux's form; None: unknown."""
    command = ["nvidia-smi", f"--id=GPU-{uuid}", "--query-gpu=pci.bus_id", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _BUS.fullmatch(done.stdout.strip().lower())
    return None if match is None else f"{match.group(1)[-4:]}:{match.group(2)}"
