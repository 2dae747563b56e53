"""The planner's bytes of weights, gradients and optimiser against those of the engine at ZeRO-3."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from pretrain.config import OptimizerName
from pretrain.parallel.mesh import Mesh
from pretrain.planner.memory import REDUCE_BUCKET, ParallelLayout, estimate_memory
from tests.support.engine_case import BATCH, LEARNING_RATE, LENGTH, global_batch, parts, settings
from tests.support.ranks import run_ranks

RANKS = 2


def measure(micro_batches: int, optimizer: OptimizerName) -> tuple[int, int]:
    """Bytes allocated after a step of bf16 training at ZeRO-3, and of the reduce buckets among them."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    mesh = Mesh(1, RANKS)
    config = settings(mesh, 3, "bf16", hidden_size=128, ffn_size=352, vocabulary_size=2048, layers=3)
    config.optim.name = optimizer
    config.trainer.micro_batch = BATCH // RANKS // micro_batches
    groups = ProcessGroups.create(mesh)
    before = set(_storages())
    engine = Engine.build(config, groups)
    engine.step(parts(global_batch(0), mesh, micro_batches, groups.data_rank), LEARNING_RATE)
    gc.collect()
    held = [size for place, size in _storages().items() if place not in before]
    buckets = sum(size for size in held if size >= REDUCE_BUCKET)
    return sum(held) - buckets, buckets


def _storages() -> dict[int, int]:
    actual = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    actual += [each.grad for each in actual if each.grad is not None]
    storages = [each.untyped_storage() for each in actual]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


@pytest.mark.parametrize(("micro_batches", "optimizer"), [(1, "adamw"), (2, "adamw"), (1, "lion")])
def test_state_of_the_engine(micro_batches: int, optimizer: OptimizerName) -> None:
    config = settings(Mesh(1, RANKS), hidden_size=128, ffn_size=352, vocabulary_size=2048, layers=3)
    layout = ParallelLayout(
        1, RANKS, BATCH // RANKS // micro_batches, "none", accumulates=micro_batches > 1, optimizer=optimizer
    )
    expected = estimate_memory(replace(config.model), layout, LENGTH)
    for held, buckets in run_ranks(measure, RANKS, micro_batches, optimizer):
        assert expected.state == pytest.approx(held, rel=0.15)
        assert buckets == 2 * REDUCE_BUCKET, "one bucket of bf16"
