"""The loss with a sharded vocabulary, and under ZeRO-3, against one plain process."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from data.tokens.vocabulary import ACTION_BIN_END, ACTION_BIN_START, IGNORED_LABEL, IMAGE_CODE_START
from pretrain.config import LossConfig
from pretrain.model import vocabulary
from pretrain.model.loss import LabelKind, LossSettings, Total, VocabularyHead
from pretrain.parallel.mesh import Mesh
from tests.support.engine_case import LEARNING_RATE, global_batch, rows, settings
from tests.support.loss_case import LossCase, naive_loss
from tests.support.ranks import run_ranks

STRONG = LossSettings(image_weight=0.04, z_loss=1e-2)
ROWS, WIDTH = 48, 8


def shared_case(tokens: int, rows: int = ROWS) -> LossCase:
    """Labels are at the first and last id of every shard at two and four ranks, and in the action bins.

    Bins are equal in pairs: where a rank's shard ends between them, two ranks have the likeliest one.
    """
    case = LossCase.random(tokens, rows, WIDTH)
    case.weight[10_200:10_260] = case.weight[10_050:10_110]
    quarter = rows // 4
    edges = torch.tensor([end for i in range(4) for end in (i * quarter, (i + 1) * quarter - 1)])
    case.labels[: len(edges)] = edges[:tokens]
    if rows > ACTION_BIN_END:
        case.labels[len(edges) :] = torch.arange(ACTION_BIN_START, ACTION_BIN_END, 9)[: tokens - len(edges)]
    return case


def shared_loss(mesh: Mesh, tokens: int, block: int, rows: int) -> dict[str, Any]:
    """Loss, sums and gradients on this rank, and its collectives."""
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.tensor_parallel import TensorParallelFactory

    collectives: list[str] = []

    class Counting(TensorParallelFactory):
        def sum_over_ranks(self, values: Tensor) -> Tensor:
            collectives.append("sum")
            return super().sum_over_ranks(values)

        def max_over_ranks(self, values: Tensor) -> Tensor:
            collectives.append("max")
            return super().max_over_ranks(values)

    vocabulary.block_rows = lambda tokens, device: block
    factory = Counting(ProcessGroups.create(mesh))
    case = shared_case(tokens, rows)
    head = VocabularyHead(factory, rows, WIDTH)
    with torch.no_grad():
        head.weight.copy_(case.weight.chunk(factory.size)[factory.rank])
    hidden = case.hidden.requires_grad_()
    loss, sums = head(hidden, case.labels, torch.tensor([5.0, 9.0]), STRONG)
    loss.backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    return {
        "loss": loss.item(),
        "sums": sums.tolist(),
        "hidden": hidden.grad.tolist(),
        "weight": head.weight.grad.tolist(),
        "collectives": collectives,
    }


@pytest.mark.parametrize(
    ("ranks", "tokens", "block", "rows"),
    [
        (2, 13, 5, ROWS),
        (4, 8, 5, ROWS),
        (4, 1, 48, ROWS),
        (2, 0, 5, ROWS),
        (2, 37, 600, 20_272),  # the second rank's shard starts at 10,136, between the action bins
        (4, 37, 600, 13_516),  # and the fourth's at 10,137
    ],
)
def test_sharded_vocabulary_gives_the_same_loss_and_gradients(
    ranks: int, tokens: int, block: int, rows: int
) -> None:
    case = shared_case(tokens, rows)
    case.normaliser = lambda settings: torch.tensor([5.0, 9.0])  # pyright: ignore[reportAttributeAccessIssue]
    loss, sums, hidden, weight = naive_loss(case, STRONG)
    actual = run_ranks(shared_loss, ranks, Mesh(ranks, 1), tokens, block, rows)
    # One fp32 product sums over the vocabulary: its rounding grows with the root of the number of terms, and
    # their order is the machine's (a plain product of 20,272 terms has been 5e-5 off).
    scale = float(hidden.abs().max()) if tokens else 0.0
    rounding = torch.finfo(torch.float32).eps * rows**0.5 * scale
    for one in actual:
        assert one["loss"] == pytest.approx(loss.item(), abs=1e-6, rel=3e-7)
        torch.testing.assert_close(torch.tensor(one["sums"]).double(), sums, atol=1e-5, rtol=1e-6)
        gradient = torch.tensor(one["hidden"]).reshape(tokens, WIDTH)
        torch.testing.assert_close(gradient.double(), hidden, atol=max(1e-6, rounding), rtol=1e-5)
        assert (rows == ROWS) == (float(sums[LabelKind.ACTION, Total.ACTION_L1]) == 0)
        assert one["collectives"] == ["max", "sum"], "collectives for every block, or in the backward pass"
    whole = torch.cat([torch.tensor(one["weight"]) for one in actual])
    torch.testing.assert_close(whole.double(), weight, atol=1e-6, rtol=1e-5)


def weights_in_passes(mesh: Mesh, steps: int) -> dict[str, Any]:
    """Train at stage 3 and record the head's weight: between steps, forward and backward."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    weights: dict[str, list[Tensor]] = {"forward": [], "backward": []}
    extend, gradient = vocabulary.extend_log_sum, vocabulary._VocabularyStatistics.backward

    def recording_forward(logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        weights["forward"].append(engine.module.lm_head.weight.detach().clone())
        return extend(logits, *rest)

    def recording_backward(ctx: Any, log_sum_gradient: Tensor, label_gradient: Tensor, *_: Tensor) -> Any:
        weights["backward"].append(ctx.saved_tensors[1].detach().clone())
        return gradient(ctx, log_sum_gradient, label_gradient, *_)

    vocabulary.extend_log_sum = recording_forward
    vocabulary._VocabularyStatistics.backward = staticmethod(recording_backward)
    groups = ProcessGroups.create(mesh)
    engine = Engine.build(settings(mesh, stage=3), groups)
    share = 4 // mesh.data
    sizes = []
    for step in range(steps):
        first = groups.data_rank * share
        parts = [rows(global_batch(step), first + i, first + i + 1) for i in range(share)]
        engine.step(parts, LEARNING_RATE)
        sizes.append(engine.module.lm_head.weight.numel())
    same = [
        torch.equal(forward, backward)
        for forward, backward in zip(weights["forward"], weights["backward"], strict=True)
    ]
    return {
        "between steps": sizes,
        "in backward": {tuple(weight.shape) for weight in weights["backward"]},
        "same": same,
        "changed": not torch.equal(weights["backward"][0], weights["backward"][-1]),
    }


@pytest.mark.parametrize("mesh", [Mesh(2, 2), Mesh(1, 2)])
def test_zero_3_gathers_the_whole_weight_for_the_backward_pass(mesh: Mesh) -> None:
    steps = 3
    for actual in run_ranks(weights_in_passes, mesh.size, mesh, steps):
        assert actual["between steps"] == [0] * steps
        assert actual["in backward"] == {(512 // mesh.tensor, 64)}
        assert actual["same"] == [True] * (steps * 4 // mesh.data)
        assert actual["changed"]


def losses_where_half_has_no_labels(mesh: Mesh) -> list[tuple[float, float]]:
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    groups = ProcessGroups.create(mesh)
    engine = Engine.build(settings(mesh, stage=3), groups)
    share = 4 // mesh.data
    curve = []
    for step in range(3):
        batch = global_batch(step)
        batch.labels[2:] = IGNORED_LABEL
        first = groups.data_rank * share
        result = engine.step([rows(batch, first, first + share)], LEARNING_RATE)
        curve.append((result.loss.item(), result.gradient_norm.item()))
    return curve


def test_rank_without_labels_participates() -> None:
    expected = run_ranks(losses_where_half_has_no_labels, 1, Mesh(1, 1))[0]
    for mesh in (Mesh(1, 2), Mesh(2, 2)):
        for actual in run_ranks(losses_where_half_has_no_labels, mesh.size, mesh):
            torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), atol=5e-6, rtol=1e-4)
    assert expected[0] != expected[1]


def step_without_weight(mesh: Mesh, loss: LossConfig, labelled: bool) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of two steps; labels of the first have weight 0, or are missing."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    groups = ProcessGroups.create(mesh)
    config = dataclasses.replace(settings(mesh, stage=3), loss=loss)
    engine = Engine.build(config, groups)
    share = 4 // mesh.data
    actual = []
    for step in range(2):
        batch = global_batch(step)
        if step == 0:
            batch.labels[:] = IMAGE_CODE_START if labelled else IGNORED_LABEL
        first = groups.data_rank * share
        result = engine.step([rows(batch, first, first + share)], LEARNING_RATE)
        actual.append([float(result.loss), float(result.gradient_norm)])
    return actual[0], actual[1]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_step_with_zero_label_weights_changes_nothing(published: bool, labelled: bool) -> None:
    loss = LossConfig(image_weight=0.0, z_loss=0.0, reference_compatible=published)
    for empty, following in run_ranks(step_without_weight, 4, Mesh(1, 4), loss, labelled):
        assert empty == [0, 0]
        assert following[1] > 0
        assert torch.tensor(following).isfinite().all()
