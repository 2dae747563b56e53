"""The loss and its gradients against a naive one in fp64, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from data.tokens.vocabulary import ACTION_BIN_END, ACTION_BIN_START, ACTION_START
from pretrain.model import vocabulary
from pretrain.model.factory import LayerFactory
from pretrain.model.loss import (
    TOKEN_KINDS,
    LabelKind,
    LossSettings,
    Total,
    VocabularyHead,
    label_kinds,
    label_weights,
    means,
)
from pretrain.model.vocabulary import (
    block_rows,
    key_offset,
    key_value,
    logit_bytes,
    order_key,
    vocabulary_statistics,
)
from tests.support.loss_case import LossCase, naive_loss

CPU = torch.device("cpu")
STRONG = LossSettings(image_weight=0.04, z_loss=1e-2)  # every term is significant


def found_by(case: LossCase, settings: LossSettings = STRONG) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, sums, gradient of hidden, gradient of weight) of the head under test."""
    head = VocabularyHead(LayerFactory(), *case.weight.shape)
    head.weight = torch.nn.Parameter(case.weight.clone())
    hidden = case.hidden.clone().requires_grad_()
    loss, sums = head(hidden, case.labels, case.normaliser(settings), settings)
    loss.backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    return loss.detach(), sums, hidden.grad, head.weight.grad


def assert_equal_to_naive(case: LossCase, tolerance: float = 1e-5) -> None:
    expected = naive_loss(case, STRONG)
    actual = found_by(case)
    assert actual[0].dtype == torch.float32
    for ours, theirs in zip((actual[0], *actual[2:]), (expected[0], *expected[2:]), strict=True):
        # A single label that is certain has a gradient near zero: then of its terms' size.
        scale = max(float(theirs.abs().max()), 1 / len(case.labels))
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance * scale, rtol=0)
    torch.testing.assert_close(actual[1].double(), expected[1], atol=1e-6, rtol=max(tolerance, 1e-5))


def blocks_of(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(vocabulary, "block_rows", lambda tokens, device: rows)


def test_loss_and_gradients_equal_a_naive_one_over_the_published_ids() -> None:
    case = LossCase.random(tokens=301, rows=16_384, width=32)
    assert block_rows(301, CPU) < 16_384, "one block alone would prove little"
    assert set(label_kinds(case.labels).tolist()) == set(TOKEN_KINDS)
    assert_equal_to_naive(case)


@given(st.integers(1, 40), st.integers(2, 60), st.integers(1, 70), st.integers(0, 10**6))
@hypothesis_settings(max_examples=40, deadline=None)
def test_any_number_of_tokens_and_of_rows_in_a_block(tokens: int, rows: int, block: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        blocks_of(patch, block)
        assert_equal_to_naive(LossCase.random(tokens, rows, 8, seed))


def test_labels_at_the_edges_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks_of(monkeypatch, 7)
    case = LossCase.random(tokens=8, rows=20, width=8)
    case.labels = torch.tensor([0, 6, 7, 13, 14, 19, 19, 0])
    assert_equal_to_naive(case)


def test_bf16_gradients_are_as_good_as_those_through_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks_of(monkeypatch, 64)
    case = LossCase.random(tokens=512, rows=8192, width=64)
    case.hidden, case.weight = case.hidden.bfloat16(), case.weight.bfloat16()
    expected = naive_loss(case, STRONG)
    actual = found_by(case)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    whole = naive_of_logits((hidden @ weight.t()).float(), case, STRONG)
    materialised = torch.autograd.grad(whole, (hidden, weight))
    assert abs(float(actual[0]) - float(expected[0])) < 1e-3 * float(expected[0])
    for ours, theirs, exact in zip(actual[2:], materialised, expected[2:], strict=True):
        assert ours.dtype == torch.bfloat16
        assert relative_error(ours, exact) < 1.2 * relative_error(theirs, exact) < 0.007


def relative_error(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact).norm() / exact.norm())


def naive_of_logits(logits: Tensor, case: LossCase, settings: LossSettings) -> Tensor:
    weights, normaliser = label_weights(case.labels, settings), case.normaliser(settings)
    entropy = torch.nn.functional.cross_entropy(logits, case.labels, reduction="none")
    z_loss = settings.z_loss * logits.logsumexp(1).square().sum() / normaliser[1]
    return (weights * entropy).sum() / normaliser[0] + z_loss


def test_no_labels_give_no_loss_and_gradients_of_zero() -> None:
    case = LossCase.random(tokens=0, rows=64, width=8)
    loss, sums, hidden, weight = found_by_normaliser(case, torch.tensor([3.0, 4.0]))
    assert float(loss) == 0
    assert sums.tolist() == [[0.0] * 4] * 4
    assert hidden.shape == (0, 8)
    assert weight.tolist() == [[0.0] * 8] * 64


def found_by_normaliser(case: LossCase, normaliser: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    case.normaliser = lambda settings: normaliser  # pyright: ignore[reportAttributeAccessIssue]
    return found_by(case)


def test_normaliser_divides_each_term() -> None:
    case = LossCase.random(tokens=9, rows=30, width=8)
    weights = label_weights(case.labels, STRONG)
    loss = float(found_by(case)[0])
    z_term = loss - float(found_by(case, LossSettings(z_loss=0.0))[0])
    doubled = torch.stack([2 * weights.sum(), torch.tensor(4.0 * len(weights))])
    assert float(found_by_normaliser(case, doubled)[0]) == pytest.approx((loss - z_term) / 2 + z_term / 4)


def test_huge_logits_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks_of(monkeypatch, 5)
    case = LossCase.random(tokens=11, rows=23, width=8)
    case.hidden *= 1e4
    expected = naive_loss(case, STRONG)
    assert float((case.hidden @ case.weight.t()).abs().max()) > 1e4
    loss, _, hidden, weight = found_by(case)
    torch.testing.assert_close(loss.double(), expected[0], atol=0, rtol=1e-5)
    for ours, theirs in ((hidden, expected[2]), (weight, expected[3])):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


def test_tie_for_the_largest_logit_counts_as_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks_of(monkeypatch, 2)
    weight = torch.tensor([[1.0], [3.0], [2.0], [3.0], [-1.0]])
    hidden = torch.ones(5, 1)
    head = VocabularyHead(LayerFactory(), 5, 1)
    head.weight = torch.nn.Parameter(weight)
    _, sums = head(hidden, torch.arange(5), torch.ones(2), LossSettings())
    assert sums[LabelKind.STRUCTURE, 1:3].tolist() == [4, 2]  # ids 0 to 3; both that have 3.0 are correct
    assert sums[LabelKind.IMAGE, 1:3].tolist() == [1, 0]


def test_the_largest_logit_has_no_gradient() -> None:
    case = LossCase.random(tokens=3, rows=8, width=4)
    hidden = case.hidden.requires_grad_()
    actual = vocabulary_statistics(hidden, case.weight, case.labels, LayerFactory(), range(2, 5))
    assert [tensor.requires_grad for tensor in actual] == [True, True, False, False]


@pytest.mark.parametrize("block", [1, 100, 256, 20_000])
@pytest.mark.parametrize("rows", [10_100, 10_262, 11_000])
def test_action_distance_is_that_of_the_likeliest_bin(
    monkeypatch: pytest.MonkeyPatch, rows: int, block: int
) -> None:
    """Blocks end within the bins; some labels are the likeliest id, most likeliest ids are no bins."""
    blocks_of(monkeypatch, max(block, rows // 300))
    case = LossCase.random(tokens=60, rows=rows, width=8)
    case.labels[:40] = torch.randint(ACTION_BIN_START, min(rows, ACTION_BIN_END), (40,))
    case.labels[0] = min(rows, ACTION_BIN_END) - 1
    expected, actual = naive_loss(case, STRONG)[1], found_by(case)[1]
    assert float(expected[LabelKind.ACTION, Total.ACTION_L1]) > 1
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)
    assert actual[LabelKind.IMAGE :, Total.ACTION_L1].tolist() == [0, 0, 0]


def test_first_of_equal_bins_is_chosen_and_last_bin_decodes_like_its_predecessor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks_of(monkeypatch, 5000)
    weight = torch.zeros(ACTION_BIN_END, 1)
    weight[10_002], weight[ACTION_BIN_START + 7], weight[ACTION_BIN_END - 2 :] = 9.0, 3.0, 3.0
    head = VocabularyHead(LayerFactory(), ACTION_BIN_END, 1)
    head.weight = torch.nn.Parameter(weight)
    labels = torch.tensor([ACTION_BIN_START + 7, ACTION_BIN_START + 9, ACTION_BIN_END - 1])
    for sign, expected in ((1.0, [0, 2, 247]), (-1.0, [7, 9, 254])):
        hidden = torch.full((3, 1), sign)
        for number, bins in enumerate(expected):
            _, sums = head(hidden[:1], labels[number : number + 1], torch.ones(2), LossSettings())
            assert float(sums[LabelKind.ACTION, Total.ACTION_L1]) == pytest.approx(bins * 2 / 255)


def test_keys_order_values_then_offsets() -> None:
    values = torch.tensor([-torch.inf, -3e38, -2.5, -1e-45, -0.0, 0.0, 1e-45, 7.0, 3e38, torch.inf])
    last = torch.full((10,), 2**24 - 1)
    first = torch.zeros_like(last)
    assert torch.equal(key_value(order_key(values, last)), values)
    assert key_offset(order_key(values, last)).tolist() == last.tolist()
    assert key_offset(order_key(values, first)).tolist() == first.tolist()
    assert (order_key(values, first) > order_key(values, last)).all()
    rising = order_key(values, last)[1:] > order_key(values, first)[:-1]
    assert rising.tolist() == [True, True, True, True, False, True, True, True, True], "zeros are equal"


def test_means_of_sums_are_by_label_and_none_without_labels() -> None:
    tokens = [[6.0, 4, 1, 3.0], [0.0, 0, 0, 0.0], [5.0, 2, 2, 0.0]]
    actual = means([*tokens, [0.0] * 4])
    assert actual == {
        "loss_action": 1.5,
        "accuracy_action": 0.25,
        "loss_image": None,
        "accuracy_image": None,
        "loss_structure": 2.5,
        "accuracy_structure": 1.0,
        "action_l1": 0.75,
    }
    assert means([[0.0] * 4] * 4)["action_l1"] is None
    assert means([*tokens, [0.0, 14, 0, 3.5]]) == {**actual, "action_head_l1": 0.25}


def test_kinds_and_weights_follow_the_id_ranges() -> None:
    ids = [3, 4, 8195, 8196, ACTION_BIN_START, ACTION_BIN_END - 1, ACTION_BIN_END, ACTION_START]
    labels = torch.tensor(ids)
    kinds = [LabelKind(int(k)).name for k in label_kinds(labels)]
    assert kinds == ["STRUCTURE", "IMAGE", "IMAGE", "STRUCTURE", "ACTION", "ACTION", "STRUCTURE", "STRUCTURE"]
    weights = label_weights(labels, LossSettings())
    assert weights.tolist() == pytest.approx([1, 0.04, 0.04, 1, 1, 1, 1, 1])


def test_the_published_code_weighs_the_last_image_code_as_one() -> None:
    labels = torch.tensor([4, 8194, 8195, 8196])
    published = LossSettings(image_weight=0.5, reference_compatible=True)
    assert label_weights(labels, published).tolist() == [0.5, 0.5, 1, 1]
    assert label_kinds(labels)[2] == LabelKind.IMAGE


@pytest.mark.parametrize("tokens", [0, 1, 300, 8192, 10**8])
@pytest.mark.parametrize("name", ["cpu", "cuda", "xpu"])
def test_block_of_logits_fits_its_size_limit(tokens: int, name: str) -> None:
    device = torch.device(name)
    rows = block_rows(tokens, device)
    assert rows == 1 or 4 * rows * tokens <= logit_bytes(device)
    assert 4 * (rows + 1) * max(tokens, 1) > logit_bytes(device), "smaller than it may be"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_the_gradients_and_one_block(dtype: torch.dtype) -> None:
    from benchmarks.report import peak_memory

    tokens, rows, width = 1024, 32_768, 64
    case = LossCase.random(tokens, rows, width)
    case.hidden, case.weight = case.hidden.to(dtype), case.weight.to(dtype)
    head = VocabularyHead(LayerFactory(), rows, width)
    head.weight = torch.nn.Parameter(case.weight)
    hidden, normaliser = case.hidden.requires_grad_(), case.normaliser(STRONG)

    def step() -> Any:
        loss, _ = head(hidden, case.labels, normaliser, STRONG)
        return torch.autograd.grad(loss, (hidden, head.weight))

    step()  # one-time allocations
    gradients = (hidden.numel() * (4 + 2 * hidden.element_size())) + rows * width * hidden.element_size()
    block = logit_bytes(CPU) * 5 // 2  # logits, their exponentials and a cast of them
    vectors = 64 * 8 * tokens
    actual = peak_memory(step, "cpu")
    assert actual <= gradients + block + vectors, f"{actual / 2**20:.1f} MiB"
    assert actual < 0.25 * 4 * tokens * rows, "as much as a share of the whole logits"
    assert actual > rows * width * hidden.element_size(), "not even the gradient was counted"
