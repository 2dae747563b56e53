"""The partitioned engine against one plain process: same losses, same gradient norms."""

from __future__ import annotations

import dataclasses
import traceback
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.contracts import PackedBatch
from data.errors import InputError
from pretrain.checks import check_training
from pretrain.config import LossConfig, TrainingConfig
from pretrain.model.transformer import Transformer
from pretrain.parallel.batch import check_batch
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.mesh import Mesh
from tests.support.engine_case import (
    LEARNING_RATE,
    LENGTH,
    VOCABULARY,
    Curve,
    global_batch,
    logits_and_labels,
    parts,
    rows,
    settings,
    train_each,
    train_partitioned,
    train_plain,
)
from tests.support.ranks import RankFailedError, run_ranks

Layout = tuple[int, int, int, int]
QUIRKS = LossConfig(image_weight=0.04, z_loss=0.01, reference_compatible=True)


def weighted_sums(
    model: Transformer, batch: PackedBatch, loss: LossConfig
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Summed w l, w, logsumexp^2 and number of labels, written out."""
    logits, labels = logits_and_labels(model, batch)
    weights = torch.where(labels >= 4, loss.image_weight, 1.0)  # ids from 4 on are image codes here
    entropy = F.cross_entropy(logits, labels, reduction="none")
    return (weights * entropy).sum(), weights.sum(), logits.logsumexp(1).square().sum(), len(labels)


@pytest.fixture(scope="module")
def plain_curve() -> Curve:
    """Curve of the default loss: a weighted mean over the whole global batch."""

    def loss_of(model: Transformer, batch: PackedBatch) -> Tensor:
        loss = LossConfig()
        entropy, weight, squares, count = weighted_sums(model, batch, loss)
        return entropy / weight + loss.z_loss * squares / count

    return train_plain(loss_of)


def published_curve(mesh: Mesh, micro_batches: int) -> Curve:
    """Curve of the published rule: the mean over ranks and micro-batches of each one's own weighted mean.

    It decays norms and biases too.
    """

    def loss_of(model: Transformer, batch: PackedBatch) -> Tensor:
        means = []
        for rank in range(mesh.data):
            for part in parts(batch, mesh, micro_batches, rank):
                entropy, weight, squares, count = weighted_sums(model, part, QUIRKS)
                means.append(entropy / weight + QUIRKS.z_loss * squares / count)
        return torch.stack(means).mean()

    return train_plain(loss_of, decay_all=True)


def assert_equal_curves(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(actual[:, 0] - expected[:, 0]).max() < 5e-6
    assert (np.abs(actual[:, 1] - expected[:, 1]) / expected[:, 1]).max() < 1e-4


LAYOUTS = (  # tensor, data, ZeRO stage, micro-batches
    (1, 2, 0, 2),
    (1, 2, 1, 2),
    (1, 2, 2, 2),
    (1, 2, 3, 2),
    (2, 2, 0, 1),
    (2, 2, 1, 1),
    (2, 2, 2, 2),
    (2, 2, 3, 1),
    (2, 2, 3, 2),
    (4, 1, 0, 4),
    (4, 1, 1, 1),
    (4, 1, 2, 1),
    (4, 1, 3, 4),
    (1, 4, 3, 1),
    (1, 1, 3, 1),
)
SHARED = ((2, 2, 3, 1), (4, 1, 3, 1), (2, 1, 1, 1), (2, 1, 2, 1), (2, 2, 0, 1))  # with sequence parallel
HALVES = tuple((2, 2, stage, 2) for stage in range(4))  # in bf16


@cache
def curves_of_mesh(
    layouts: tuple[Layout, ...], mesh: Mesh, shared: bool, precision: str
) -> dict[Layout, list[Curve]]:
    """Curves of every rank by layout, for the layouts of these ranks: one start serves them all."""
    chosen = [layout for layout in layouts if layout[:2] == (mesh.tensor, mesh.data)]
    trainings = []
    for _, _, stage, micro_batches in chosen:
        config = settings(mesh, stage, precision)
        trainings.append((shared_tokens(config) if shared else config, micro_batches))
    of_ranks = run_ranks(train_each, mesh.size, trainings)
    return {layout: [curves[at] for curves in of_ranks] for at, layout in enumerate(chosen)}


def curves_of(
    layouts: tuple[Layout, ...], layout: Layout, shared: bool = False, precision: str = "fp32"
) -> list[Curve]:
    """The curve that each rank reports in a layout."""
    return curves_of_mesh(layouts, Mesh(*layout[:2]), shared, precision)[layout]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_equals_one_plain_process(plain_curve: Curve, layout: Layout) -> None:
    curves = curves_of(LAYOUTS, layout)
    assert len(curves) == layout[0] * layout[1]
    assert all(curve == curves[0] for curve in curves), "ranks report different numbers"
    actual, expected = np.array(curves[0]), np.array(plain_curve)
    assert_equal_curves(actual, expected)
    assert expected[-1, 0] < expected[0, 0]


@pytest.mark.parametrize("layout", SHARED, ids=str)
def test_sequence_parallel_equals_one_plain_process(plain_curve: Curve, layout: Layout) -> None:
    curves = curves_of(SHARED, layout, shared=True)
    assert all(curve == curves[0] for curve in curves), "ranks report different numbers"
    assert_equal_curves(np.array(curves[0]), np.array(plain_curve))


def shared_tokens(config: TrainingConfig) -> TrainingConfig:
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, sequence_parallel=True))


def seeds_of_dropout(configs: list[TrainingConfig]) -> list[int]:
    """Every rank: its seeds of dropout in the last micro-batch, by settings."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    def refuse(*_: object, **__: object) -> list[str]:
        raise AssertionError("each micro-batch writes out its stack, for a device that is not there")

    groups, seeds = ProcessGroups.create(Mesh(2, 2)), []
    for config in configs:
        engine, format_stack = Engine.build(config, groups), traceback.format_stack
        traceback.format_stack = refuse
        engine.step(parts(global_batch(0), groups.mesh, 1, groups.data_rank), 0.0)
        traceback.format_stack = format_stack
        seeds.append(torch.initial_seed())
    return seeds


def test_ranks_with_the_same_tokens_drop_the_same() -> None:
    config = settings(Mesh(2, 2), dropout=0.1)
    of_ranks = run_ranks(seeds_of_dropout, 4, [config, shared_tokens(config)])
    seeds, seeds_of_shares = zip(*of_ranks, strict=True)
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert len(set(seeds_of_shares)) == 4


@pytest.mark.parametrize(("data", "micro_batches"), [(2, 1), (2, 2)])
def test_published_normalisation_is_available(data: int, micro_batches: int) -> None:
    mesh = Mesh(1, data)
    config = dataclasses.replace(settings(mesh), loss=QUIRKS)
    ours = dataclasses.replace(config, loss=dataclasses.replace(QUIRKS, reference_compatible=False))
    curves = run_ranks(train_each, data, [(config, micro_batches), (ours, micro_batches)])[0]
    actual, whole = map(np.array, curves)
    expected = np.array(published_curve(mesh, micro_batches))
    assert_equal_curves(actual, expected)
    assert np.abs(actual[:, 0] - whole[:, 0]).max() > 1e-4, "the normalisation makes no difference"
    assert (np.abs(actual[:, 1] - whole[:, 1]) / whole[:, 1]).max() > 1e-3


@pytest.mark.parametrize("layout", HALVES, ids=str)
def test_bf16_stays_near_fp32(plain_curve: Curve, layout: Layout) -> None:
    curves = curves_of(HALVES, layout, precision="bf16")
    actual, expected = np.array(curves[0]), np.array(plain_curve)
    assert np.abs(actual[:, 0] - expected[:, 0]).max() < 5e-3
    assert (np.abs(actual[:, 1] - expected[:, 1]) / expected[:, 1]).max() < 0.03
    assert np.abs(actual[:, 0] - expected[:, 0]).max() > 1e-6, "not in bf16 at all"


def gradients_of_equal_micro_batches(mesh: Mesh, stage: int, counts: list[int]) -> list[list[np.ndarray]]:
    """This rank's share of a step's gradient by number of micro-batches, from AdamW's first moment after it.

    Every weight is 1 and the counts are powers of 2, so that the parts are exact multiples of each other.
    """
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    groups, gradients = ProcessGroups.create(mesh), []
    for count in counts:
        config = settings(mesh, stage, "bf16")
        config.trainer.global_batch, config.trainer.micro_batch = count * mesh.data, 1
        config.loss.image_weight, config.optim.gradient_clipping = 1.0, 1e6
        engine = Engine.build(config, groups)
        engine.step([rows(global_batch(0), 0, 1)] * count, 0.0)
        gradients.append([state["exp_avg"].numpy() for state in engine.optimizer.state.values()])
    return gradients


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_gradients_of_micro_batches_accumulate_in_fp32(stage: int) -> None:
    for one, sixteen in run_ranks(gradients_of_equal_micro_batches, 2, Mesh(1, 2), stage, [1, 16]):
        for theirs, ours in zip(one, sixteen, strict=True):
            assert theirs.any()
            off = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            assert np.array_equal(ours, theirs), f"off by {off:.1e}"


def test_stage_3_holds_no_whole_matrix() -> None:
    for whole in run_ranks(whole_parameters_by_kind, 2):
        assert whole == {"norm": True, "matrix": False}


def whole_parameters_by_kind() -> dict[str, bool]:
    """Whether norms and whether matrices are whole on this rank between steps."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    groups = ProcessGroups.create(Mesh(1, 2))
    engine = Engine.build(settings(groups.mesh), groups)
    engine.step(parts(global_batch(0), groups.mesh, 1, groups.data_rank), LEARNING_RATE)
    kinds: dict[str, set[bool]] = {"norm": set(), "matrix": set()}
    for name, parameter in engine.module.named_parameters():
        kinds["norm" if "norm" in name else "matrix"].add(parameter.numel() > 0)
    return {kind: whole == {True} for kind, whole in kinds.items() if len(whole) == 1}


def test_unknown_tokens_and_long_samples_are_refused() -> None:
    batch, model = global_batch(0), settings(Mesh(1, 1)).model
    check_batch(batch, model)
    batch.positions[0, -1] = LENGTH
    with pytest.raises(InputError, match=f"a sample of {LENGTH + 1} tokens, but"):
        check_batch(batch, model)
    batch.tokens[0, 0] = VOCABULARY
    with pytest.raises(InputError, match=f"token id {VOCABULARY} in the data"):
        check_batch(batch, model)


def test_recomputation_and_dropout_are_repeatable() -> None:
    config = settings(Mesh(2, 2), dropout=0.1)
    full = settings(Mesh(2, 2), dropout=0.1, recompute="full")
    first, recomputed = run_ranks(train_each, 4, [(config, 1), (full, 1)])[0]
    again = run_ranks(train_partitioned, 4, config)[0]  # in other processes
    assert first == again
    np.testing.assert_allclose(np.array(recomputed), np.array(first), rtol=1e-5)


def test_wrong_world_size_and_indivisible_sizes_are_refused() -> None:
    with pytest.raises(RankFailedError, match="1 processes run, but"):
        run_ranks(train_partitioned, 1, settings(Mesh(1, 2)))
    with pytest.raises(RankFailedError, match=r"model\.heads=6 does not divide by parallel\.tensor=4"):
        run_ranks(train_partitioned, 4, settings(Mesh(4, 1), heads=6, hidden_size=96))


def test_layouts_that_do_not_divide_tokens_or_batch_are_refused() -> None:
    config = settings(Mesh(1, 1))
    config.parallel.sequence_parallel = True
    with pytest.raises(InputError, match=r"sequence_parallel=true, but parallel\.tensor=1"):
        check_training(config)
    config.parallel.tensor, config.trainer.sequence_length = 2, 33
    with pytest.raises(InputError, match=r"sequence_length=33 does not divide by parallel\.tensor=2"):
        check_training(config)
    config.trainer.sequence_length, config.parallel.data = 32, 3
    with pytest.raises(InputError, match=r"global_batch=4 does not divide by parallel\.data=3"):
        check_training(config)


def train_without_building(config: TrainingConfig) -> None:
    from pretrain import trainer

    for name in ("RunFolder", "TokenStream", "Engine"):
        setattr(trainer, name, None)  # using one would raise another error
    trainer.train(config)


def test_attention_that_cannot_run_here_is_refused_before_anything_is_built() -> None:
    with pytest.raises(RankFailedError, match=r"model\.attention=flash: needs a CUDA device"):
        run_ranks(train_without_building, 1, settings(Mesh(1, 1), attention="flash"))


def _two_layouts() -> tuple[int, ...]:
    ProcessGroups.create(Mesh(2, 2))
    ProcessGroups.create(Mesh(4, 1))
    return ()


def test_a_second_layout_in_the_same_processes_is_refused() -> None:
    with pytest.raises(RankFailedError, match=r"parallel\.tensor=4, but .* megatron groups of 2"):
        run_ranks(_two_layouts, 4)


def test_tensor_parallel_peers_have_consecutive_ranks() -> None:
    mesh = Mesh(tensor=2, data=3)
    assert [mesh.data_rank(rank) for rank in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [mesh.tensor_rank(rank) for rank in range(6)] == [0, 1, 0, 1, 0, 1]
    with pytest.raises(InputError, match="4 processes run"):
        mesh.check_world(4)


def device_of_a_rank_that_has_joined() -> torch.device:
    """Device of a rank if torch.distributed is initialised, on a machine that pretends to have GPUs."""
    import torch.distributed as dist

    from pretrain.parallel.groups import ProcessGroups

    dist.init_process_group("gloo")
    dist.barrier()  # a rank that ended now would end the store of the others
    chosen = [torch.device("cuda", 0)]
    torch.cuda.is_available = lambda: True
    torch.cuda.set_device = chosen.append
    torch.cuda.current_device = lambda: chosen[-1].index
    return ProcessGroups.create(Mesh(1, 2)).device


def test_each_rank_uses_its_own_gpu_if_torch_distributed_is_initialised() -> None:
    assert [str(device) for device in run_ranks(device_of_a_rank_that_has_joined, 2)] == ["cuda:0", "cuda:1"]


def test_harness_names_the_rank_that_failed() -> None:
    with pytest.raises(RankFailedError, match="rank 1 failed"):
        run_ranks(_fails_on_one, 2)


def _fails_on_one() -> None:
    import os

    if os.environ["RANK"] == "1":
        raise ValueError("no")
