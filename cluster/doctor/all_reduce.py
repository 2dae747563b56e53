"""`torchrun ... -m cluster.doctor.all_reduce` (or under `srun`): bandwidth of an all-reduce over all ranks.

Every rank takes part; rank 0 prints one JSON object. Bandwidth is the bus bandwidth of a ring, comparable
between any numbers of ranks: bytes x 2 (n - 1) / n / seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from statistics import median

_REPETITIONS, _WARM_UP = 10, 3


def measure(megabytes: int) -> dict[str, float | int | str]:
    """Measure the median time of an all-reduce over the ranks of the process group that exists."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    values = torch.ones(megabytes * 250_000, device=device)
    durations: list[float] = []
    for _ in range(_WARM_UP + _REPETITIONS):
        values.fill_(1.0)
        start = time.perf_counter()
        dist.all_reduce(values)
        total = float(values[-1])  # waits for the device
        durations.append(time.perf_counter() - start)
        if total != dist.get_world_size():
            raise RuntimeError(f"{dist.get_world_size()} ranks added ones up to {total}")
    ranks, seconds = dist.get_world_size(), median(durations[_WARM_UP:])
    moved = values.numel() * 4 * 2 * (ranks - 1) / ranks
    return {
        "backend": dist.get_backend(),
        "ranks": ranks,
        "bytes": values.numel() * 4,
        "seconds": seconds,
        "gigabytes_per_second": moved / seconds / 1e9,
    }


def main(arguments: list[str]) -> int:
    """Join the process group that the environment describes, measure and print; return the exit code."""
    import torch
    import torch.distributed as dist

    # Under srun each task is a rank; MASTER_ADDR and MASTER_PORT are set by the caller.
    for name, slurm in (
        ("RANK", "SLURM_PROCID"),
        ("WORLD_SIZE", "SLURM_NTASKS"),
        ("LOCAL_RANK", "SLURM_LOCALID"),
    ):
        os.environ.setdefault(name, os.environ.get(slurm, "0"))
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    dist.init_process_group("nccl" if gpus else "gloo")
    measured = measure(int(arguments[0]) if arguments else 64)
    if dist.get_rank() == 0:
        print(json.dumps(measured), flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
