"""Saves beside a training on one GPU, whose copies are on a stream of their own."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.step_run import ALONE
from pretrain.config import TrainingConfig
from pretrain.parallel.mesh import Mesh
from tests.support import staging_case as case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(config: TrainingConfig, root: Path, micro_batches: int) -> tuple[int, list[str]]:
    """In a new process: `case.save_at_every_step`."""
    os.environ.pop("DS_ACCELERATOR", None)
    os.environ.update(ALONE)
    on_host = config.parallel.offload != "none"
    late = partial(case.LateHostCopies, 0.1) if on_host else case.LateDeviceCopies
    return case.save_at_every_step(config, root, micro_batches, late)


@pytest.mark.parametrize(
    ("stage", "precision", "micro_batches", "offload"),
    [
        (0, "bf16", 1, "none"),
        (1, "bf16", 2, "none"),
        (2, "fp32", 1, "none"),
        (3, "fp32", 1, "none"),
        (3, "bf16", 2, "none"),
        (3, "bf16", 1, "all"),
    ],
)
def test_a_save_at_every_step_holds_the_state_at_the_save_to_the_last_bit(
    stage: int, precision: str, micro_batches: int, offload: str, tmp_path: Path
) -> None:
    config = case.configuration(Mesh(1, 1), stage, precision, micro_batches, offload)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as processes:
        overlapped, differing = processes.submit(on_gpu, config, tmp_path, micro_batches).result()
    assert overlapped == case.SAVES, "each was still to be copied when the next update was queued"
    assert differing == []
