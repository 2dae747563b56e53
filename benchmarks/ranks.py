"""A process of a benchmark as one rank of a training on the CPU."""

from __future__ import annotations

import os
import warnings

import torch

from pretrain.config import ParallelConfig


def become_rank(parallel: ParallelConfig, rank: int, port: int) -> None:
    """Set the environment of DeepSpeed and torch.distributed; to be called before DeepSpeed is imported.

    Args:
        parallel: The layout: tensor x data ranks, all on this machine.
        rank: Of this process.
        port: Of the ranks' rendezvous.
    """
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(parallel.tensor * parallel.data),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES="",
        DS_ACCELERATOR="cpu",
        DEEPSPEED_LOG_LEVEL="error",
    )
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
