"""The continuous action head on a GPU against the same head on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pretrain.model.action_head import ActionHead
from pretrain.model.action_prompts import ActionPrompts
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.model.generate_continuous import predict_actions
from pretrain.model.parameters import Shard, initial_values
from pretrain.model.transformer import Transformer, initialise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CHUNK = 5
SMALL = ModelConfig(
    vocabulary_size=16_384,
    hidden_size=64,
    ffn_size=96,
    layers=2,
    heads=4,
    max_positions=128,
    dropout=0.0,
    action_head=ActionHeadConfig(time_horizon=CHUNK, dropout=0.0),
)


@torch.no_grad()
def head() -> ActionHead:
    module = ActionHead(SMALL)
    for name, parameter in module.named_parameters():
        values = initial_values(f"action_head.{name}", Shard(tuple(parameter.shape)), SMALL, 0)
        parameter.copy_(values.view(parameter.shape))
    return module.train()


def test_actions_and_gradients_equal_those_of_the_cpu() -> None:
    host = head()
    device = copy.deepcopy(host).cuda()
    lengths = np.array([17, 40, 3])
    hidden = torch.randn(60, 64, generator=torch.Generator().manual_seed(1))
    results = []
    for module in (host, device):
        where = module.hidden_projection.weight.device
        prompts = ActionPrompts.of(np.cumsum(lengths), lengths, CHUNK * 7, where)
        actions = module(hidden.to(where), prompts)
        actions.square().sum().backward()
        results.append(actions.detach().cpu())
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)
    for (name, ours), theirs in zip(device.named_parameters(), host.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_gives_the_actions_of_the_cpu(dtype: torch.dtype) -> None:
    host = Transformer(SMALL)
    initialise(host, 0)
    device = copy.deepcopy(host).to("cuda", dtype).eval()
    prompts = [[0, 11_000, 11_001, 8710], [0, 11_002, 8710]]
    expected = predict_actions(host.eval(), prompts)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    np.testing.assert_allclose(predict_actions(device, prompts), expected, atol=tolerance)
