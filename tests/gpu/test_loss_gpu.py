"""The loss on a GPU: as exact as on the CPU, and within its memory at full size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.model import vocabulary
from pretrain.model.factory import LayerFactory
from pretrain.model.loss import LossSettings, VocabularyHead
from tests.support.loss_case import LossCase, naive_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

STRONG = LossSettings(image_weight=0.04, z_loss=1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.01)])
def test_gradients_equal_naive_ones_in_fp64(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "block_rows", lambda tokens, device: 1000)
    case = LossCase.random(tokens=333, rows=16_384, width=64)
    case.hidden, case.weight = case.hidden.to(dtype), case.weight.to(dtype)
    expected = naive_loss(case, STRONG)
    head = VocabularyHead(LayerFactory(), 16_384, 64)
    head.weight = torch.nn.Parameter(case.weight.cuda())
    hidden = case.hidden.cuda().requires_grad_()
    loss, _ = head(hidden, case.labels.cuda(), case.normaliser(STRONG).cuda(), STRONG)
    loss.backward()
    actual = (loss.detach(), hidden.grad, head.weight.grad)
    for ours, exact in zip(actual, (expected[0], *expected[2:]), strict=True):
        assert ours is not None
        assert float((ours.cpu().double() - exact).norm() / exact.norm()) < tolerance


def test_full_size_takes_less_than_a_gigabyte() -> None:
    tokens, rows, width = 8192, 65_536, 4096
    head = VocabularyHead(LayerFactory(), 1, 1)
    head.weight = torch.nn.Parameter(torch.randn(rows, width, device="cuda").mul_(0.02).bfloat16())
    hidden = torch.randn(tokens, width, device="cuda").bfloat16().requires_grad_()
    labels = torch.randint(rows, (tokens,), device="cuda")
    normaliser = torch.full((2,), float(tokens), device="cuda")

    def step() -> tuple[Tensor, ...]:
        loss, _ = head(hidden, labels, normaliser, STRONG)
        return torch.autograd.grad(loss, (hidden, head.weight))

    step()  # libraries allocate their buffers once
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert head.weight.nbytes < peak < 10**9
