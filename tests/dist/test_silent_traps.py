"""Settings that train wrongly without an error: what each does, and that the engine does not.

Each test removes one protection and shows what it prevents. Norms under sequence parallelism, whose gradient
must be summed over the ranks, are in `test_tensor_parallel_gradients`; hpZ's second copy, which must not be
of the weights before initialisation, is in `test_engine_fragments`.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.errors import InputError
from pretrain.checks import check_training
from pretrain.config import TrainingConfig
from pretrain.model.transformer import expected_shapes, sharded_dimension
from pretrain.parallel.mesh import Mesh
from tests.support.engine_case import LEARNING_RATE, Curve, global_batch, parts, settings
from tests.support.ranks import run_ranks

STEPS = 3
LOSS_BOUND, NORM_BOUND = 5e-6, 1e-4  # of every layout against one process


def build(config: TrainingConfig) -> Any:
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    return Engine.build(config, ProcessGroups.create(Mesh(config.parallel.tensor, config.parallel.data)))


def take_step(engine: Any, step: int) -> tuple[float, float]:
    batches = parts(global_batch(step), engine.groups.mesh, 1, engine.groups.data_rank)
    result = engine.step(batches, LEARNING_RATE)
    return float(result.loss), float(result.gradient_norm)


def curve_of(config: TrainingConfig) -> Curve:
    """Losses and gradient norms of a few steps."""
    engine = build(config)
    return [take_step(engine, step) for step in range(STEPS)]


@pytest.fixture(scope="module")
def expected() -> Curve:
    """Of one process."""
    return run_ranks(curve_of, 1, settings(Mesh(1, 1), 0))[0]


def loss_off(actual: Curve, expected: Curve) -> float:
    """Largest difference of the losses."""
    return max(abs(a - b) for (a, _), (b, _) in zip(actual, expected, strict=True))


def norm_off(actual: Curve, expected: Curve) -> float:
    """Largest relative difference of the gradient norms."""
    return max(abs(a - b) / b for (_, a), (_, b) in zip(actual, expected, strict=True))


def partitioned_over_the_world(config: TrainingConfig) -> Curve:
    """The same with parameters partitioned over all ranks, and initialised accordingly."""
    import deepspeed

    from pretrain.parallel import zero

    init, initialise = deepspeed.zero.Init, zero._initialise

    def without_group(*, data_parallel_group: Any, **others: Any) -> Any:
        return init(**others)

    def initialise_here(module: Any, seed: int, factory: Any, data_rank: int) -> None:
        initialise(module, seed, factory, torch.distributed.get_rank())

    deepspeed.zero.Init = without_group
    zero._initialise = initialise_here
    return curve_of(config)


def test_partitions_over_all_ranks_mix_tensor_parallel_shards(expected: Curve) -> None:
    config = settings(Mesh(2, 1))
    assert loss_off(run_ranks(curve_of, 2, config)[0], expected) < LOSS_BOUND
    wrong = run_ranks(partitioned_over_the_world, 2, config)[0]
    assert loss_off(wrong, expected) > 1000 * LOSS_BOUND


def with_unmarked_norms(config: TrainingConfig) -> Curve:
    """The same with the sharded q/k norms unmarked, like replicated parameters."""
    from pretrain.parallel.tensor_parallel import TensorParallelFactory

    def unmarked(self: TensorParallelFactory, values: Tensor) -> nn.Parameter:
        return nn.Parameter(values)

    TensorParallelFactory.sharded_parameter = unmarked
    return curve_of(config)


@pytest.mark.parametrize("stage", [1, 3])
def test_unmarked_shards_give_a_wrong_gradient_norm(expected: Curve, stage: int) -> None:
    config = settings(Mesh(2, 1), stage)
    assert norm_off(run_ranks(curve_of, 2, config)[0], expected) < NORM_BOUND
    wrong = run_ranks(with_unmarked_norms, 2, config)[0]
    assert norm_off(wrong, expected) > 10 * NORM_BOUND


def test_hpz_copies_across_tensor_parallel_shards_are_refused(expected: Curve) -> None:
    config = settings(Mesh(2, 2))
    config.parallel.hpz_partition_size = 2
    with pytest.raises(InputError, match=r"hpz_partition_size=2, but .*parallel\.tensor=2"):
        check_training(config)
    wrong = run_ranks(curve_of, 4, config)[0]
    assert loss_off(wrong, expected) > 1000 * LOSS_BOUND


Shapes = dict[str, tuple[int, ...]]


def save_by_deepspeed(config: TrainingConfig, folder: Path) -> Shapes:
    """Write DeepSpeed's own checkpoint; the shapes that ours would write."""
    from pretrain.checkpoint.fragments import fragments

    engine = build(config)
    take_step(engine, 0)
    engine.deepspeed_engine.save_checkpoint(str(folder), tag="saved")
    return {fragment.name: fragment.shape for fragment in fragments(engine)}


def test_the_universal_checkpoint_of_deepspeed_merges_shapes_wrongly(tmp_path: Path) -> None:
    """It concatenates all parameters along the first dimension and reports success."""
    from deepspeed.checkpoint import ds_to_universal

    config = settings(Mesh(2, 2))
    expected = expected_shapes(config.model)
    for ours in run_ranks(save_by_deepspeed, 4, config, tmp_path):
        assert ours == expected
    ds_to_universal.main(
        Namespace(
            input_folder=str(tmp_path / "saved"),
            output_folder=str(tmp_path / "universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=False,
        )
    )
    for name, shape in expected.items():
        merged = torch.load(tmp_path / "universal" / "zero" / name / "fp32.pt", weights_only=True)["param"]
        assert (tuple(merged.shape) == shape) == (sharded_dimension(name) == 0), name
