"""The network on a GPU against the same network on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.generate import decode_action_chunk
from pretrain.model.loss import LossSettings
from pretrain.model.transformer import Transformer, initialise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SMALL = ModelConfig(
    vocabulary_size=16_384, hidden_size=64, ffn_size=96, layers=2, heads=4, max_positions=128, dropout=0.0
)


def models() -> tuple[Transformer, Transformer]:
    host = Transformer(SMALL)
    initialise(host, 0)
    return host, copy.deepcopy(host).cuda()


def test_loss_and_gradients_equal_those_of_the_cpu() -> None:
    host, device = models()
    tokens = torch.randint(0, SMALL.vocabulary_size, (2, 64), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(64).expand(2, 64)
    segments, blocks = np.ones(tokens.shape, np.int32), np.zeros(tokens.shape, np.int32)
    labelled = torch.arange(100)
    labels = tokens.flatten()[1:101]
    normaliser = torch.tensor([100.0, 100.0])
    masks = [packed_mask(segments, blocks, SMALL, torch.device(name)) for name in ("cpu", "cuda")]
    rest = (labelled, labels, normaliser)
    expected, _ = host(tokens, positions, masks[0], *rest, LossSettings())
    on_device = [argument.cuda() for argument in rest]
    actual, _ = device(tokens.cuda(), positions.cuda(), masks[1], *on_device, LossSettings())
    expected.backward()
    actual.backward()
    torch.testing.assert_close(actual.cpu(), expected, atol=1e-4, rtol=0)
    for (name, ours), theirs in zip(device.named_parameters(), host.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, atol=1e-4, rtol=1e-3)


def test_action_chunks_are_decoded_on_the_model_device() -> None:
    host, device = models()
    prompts = [[0, 11_000, 11_001], [0, 11_002]]
    actual = decode_action_chunk(device.eval(), prompts, 3)
    assert actual.shape == (2, 3, 7)
    assert (actual == decode_action_chunk(device, prompts, 3, order="token")).all()
    assert (actual == decode_action_chunk(host.eval(), prompts, 3)).mean() > 0.9
