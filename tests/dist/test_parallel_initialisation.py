"""Initial weights: the same in every layout, without ever allocating the whole model."""

from __future__ import annotations

import ctypes
import resource
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from pretrain.config import TrainingConfig
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer, initialise
from pretrain.parallel.mesh import Mesh
from tests.support.engine_case import settings
from tests.support.ranks import RankFailedError, run_ranks

Held = list[tuple[str, tuple[int, ...], tuple[int, ...], np.ndarray]]  # name, offset, shape, values

LARGE = ModelConfig(
    vocabulary_size=8192, hidden_size=1024, ffn_size=2816, layers=8, heads=8, max_positions=32, dropout=0.0
)
M_MMAP_THRESHOLD = -3  # of malloc.h


def of_layout(tensor: int, data: int, stage: int, precision: str) -> TrainingConfig:
    config = settings(Mesh(tensor, data), stage, precision, heads=8)
    return replace(config, trainer=replace(config.trainer, global_batch=data))


def held_masters(config: TrainingConfig) -> Held:
    """Every rank: its part of the fp32 masters."""
    from pretrain.checkpoint.fragments import MASTER, fragments
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    groups = ProcessGroups.create(Mesh(config.parallel.tensor, config.parallel.data))
    actual: Held = []
    for fragment in fragments(Engine.build(config, groups)):
        parts = fragment.states[MASTER].split([box.size for box in fragment.boxes])
        for box, part in zip(fragment.boxes, parts, strict=True):
            actual.append((fragment.name, box.offset, box.shape, part.view(box.shape).numpy()))
    return actual


@pytest.mark.parametrize(
    ("tensor", "data", "stage", "precision"),
    [
        (1, 2, 0, "bf16"),
        (2, 1, 0, "fp32"),
        (1, 2, 1, "fp32"),
        (1, 2, 1, "bf16"),
        (1, 2, 3, "fp32"),
        (1, 3, 3, "bf16"),
        (2, 1, 2, "fp32"),
        (2, 2, 3, "fp32"),
        (4, 1, 3, "bf16"),
    ],
)
def test_every_layout_starts_from_the_same_bits(tensor: int, data: int, stage: int, precision: str) -> None:
    config = of_layout(tensor, data, stage, precision)
    whole = Transformer(config.model)
    initialise(whole, config.trainer.seed)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    expected = {name: values.detach().to(dtype).float() for name, values in whole.named_parameters()}
    actual = {name: torch.full_like(values, torch.nan) for name, values in expected.items()}
    for held in run_ranks(held_masters, tensor * data, config):
        for name, offset, shape, values in held:
            where = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
            actual[name][where] = torch.from_numpy(values)
    for name, values in expected.items():
        assert torch.equal(actual[name], values), name


def build_without_draw(draw: bool) -> None:
    from pretrain.parallel import zero
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    def refuse(*args: object) -> torch.Tensor:
        raise RuntimeError("drawn")

    zero.initial_values = refuse
    Engine.build(of_layout(1, 1, 3, "fp32"), ProcessGroups.create(Mesh(1, 1)), initialise=draw)


def test_no_weights_are_drawn_before_a_checkpoint_is_loaded() -> None:
    run_ranks(build_without_draw, 1, False)
    with pytest.raises(RankFailedError, match="drawn"):
        run_ranks(build_without_draw, 1, True)


def drawn_and_held(config: TrainingConfig) -> tuple[int, int, int]:
    """Every rank: values that it drew, matrices of which it holds a part, and values of that part."""
    from pretrain.model import random_values
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.zero import build_module

    drawn: list[int] = []
    original = random_values.random_bits

    def counting(*arguments: Any) -> random_values.Bits:
        bits = original(*arguments)
        drawn.append(bits.size)
        return bits

    random_values.random_bits = counting
    module = build_module(config, ProcessGroups.create(Mesh(config.parallel.tensor, config.parallel.data)))
    matrices = [p for name, p in module.named_parameters() if "norm" not in name]
    return sum(drawn), len(matrices), sum(getattr(p, "ds_tensor", p).numel() for p in matrices)


def test_each_rank_draws_its_own_share_alone() -> None:
    partitioned = run_ranks(drawn_and_held, 4, of_layout(2, 2, 3, "fp32"))
    for drawn, matrices, held in partitioned:
        assert held <= drawn + matrices, "a share is padded by at most one value"
        assert drawn <= held + 2 * matrices * 96, "no more than the rows that a share begins and ends in"
    for (drawn, _, held), (_, _, share) in zip(
        run_ranks(drawn_and_held, 4, of_layout(2, 2, 2, "fp32")), partitioned, strict=True
    ):
        assert drawn == held == 2 * share, "its tensor-parallel shard"


def peak_of_building(stage: int) -> tuple[int, int]:
    """Peak of host memory while the network is built, relative to the start, and its whole size; in bytes."""
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.zero import build_module

    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65_536)  # freed memory is returned to the system
    groups = ProcessGroups.create(Mesh(1, 2))
    config = replace(of_layout(1, 2, stage, "fp32"), model=LARGE)
    before = psutil.Process().memory_info().rss
    module = build_module(config, groups)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    sizes = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters()]
    return peak, 4 * sum(sizes)


def test_building_for_stage_3_never_holds_the_whole_model() -> None:
    for peak, whole in run_ranks(peak_of_building, 2, 3):
        assert whole > 450e6
        assert peak < 0.75 * whole
    for peak, whole in run_ranks(peak_of_building, 2, 2):
        assert peak > 0.95 * whole, "the measurement does not see the weights"
