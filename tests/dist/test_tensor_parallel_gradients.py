"""Loss and gradients of the network sharded over ranks, against one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import InputError
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.loss import LossSettings, label_weights
from pretrain.model.transformer import Transformer, initialise, sharded_dimension
from pretrain.parallel.mesh import Mesh
from tests.support.ranks import run_ranks

CONFIG = ModelConfig(
    vocabulary_size=512, hidden_size=32, ffn_size=48, layers=2, heads=4, max_positions=24, dropout=0.0
)
LARGE = replace(CONFIG, heads=8, key_value_heads=4, swin_norm=True)
BATCH, LENGTH = 2, 24

Gradients = dict[str, np.ndarray]


def loss_of(model: Transformer) -> Tensor:
    """Loss of a packed batch with random labels."""
    random = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 512, (BATCH, LENGTH), generator=random)
    positions = (torch.arange(LENGTH) % 12).expand(BATCH, LENGTH)
    segments = (torch.arange(LENGTH) // 12 + 1).expand(BATCH, LENGTH)
    mask = packed_mask(segments, torch.zeros_like(segments), model.config, tokens.device)
    labelled = torch.arange(3, BATCH * LENGTH, 2)
    labels = torch.randint(0, 512, (len(labelled),), generator=random)
    settings = LossSettings()
    normaliser = torch.stack([label_weights(labels, settings).sum(), torch.tensor(float(len(labels)))])
    return model(tokens, positions, mask, labelled, labels, normaliser, settings)[0]


def prepared(model: Transformer, rank: int = 0, size: int = 1) -> Transformer:
    """Initialise with random weights, and norms that are not the identity."""
    initialise(model, 0, rank, size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                width = parameter.shape[-1]
                parameter.add_(torch.linspace(-0.3, 0.3, width))
    return model.train()


def one_process(config: ModelConfig) -> tuple[float, Gradients]:
    model = prepared(Transformer(replace(config, recompute="none")))
    loss = loss_of(model)
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def sharded(
    config: ModelConfig, sequence_parallel: bool, without_norm_sums: bool = False
) -> tuple[float, Gradients]:
    """Loss and whole gradients of the network sharded over all ranks."""
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.tensor_parallel import TensorParallelFactory

    dist.init_process_group("gloo")
    groups = ProcessGroups.create(Mesh(dist.get_world_size(), 1))
    factory = TensorParallelFactory(groups, sequence_parallel)
    if without_norm_sums:
        factory.replicated_parameter = lambda parameter: parameter
    model = prepared(Transformer(config, factory), factory.rank, factory.size)
    loss = loss_of(model)
    loss.backward()
    return loss.item(), {name: _whole(name, p, factory.size) for name, p in model.named_parameters()}


def _whole(name: str, parameter: Any, size: int) -> np.ndarray:
    dimension = sharded_dimension(name)
    if dimension is None:
        return parameter.grad.numpy()
    shares = [torch.empty_like(parameter.grad) for _ in range(size)]
    dist.all_gather(shares, parameter.grad.contiguous())
    return torch.cat(shares, dim=dimension).numpy()


def largest_difference(actual: Gradients, expected: Gradients, norms: bool) -> float:
    """Among the replicated norms, or among all other parameters."""
    assert actual.keys() == expected.keys()
    return max(
        float(np.abs(actual[name] - expected[name]).max())
        for name in expected
        if (sharded_dimension(name) is None) == norms
    )


@pytest.mark.parametrize(
    ("config", "tensor", "sequence_parallel"),
    [
        (CONFIG, 2, False),
        (LARGE, 4, False),
        (CONFIG, 2, True),
        (CONFIG, 4, True),
        (LARGE, 2, True),
        (replace(LARGE, recompute="selective"), 2, False),
        (replace(CONFIG, recompute="selective"), 2, True),
        (replace(LARGE, recompute="selective"), 2, True),
        (replace(LARGE, recompute="full"), 2, True),
    ],
)
def test_loss_and_every_gradient_equal_one_process(
    config: ModelConfig, tensor: int, sequence_parallel: bool
) -> None:
    loss, gradients = one_process(config)
    for found_loss, actual in run_ranks(sharded, tensor, config, sequence_parallel):
        assert found_loss == pytest.approx(loss, abs=1e-6)
        for norms in (False, True):
            assert largest_difference(actual, gradients, norms) < 1e-6
    assert np.abs(gradients["model.norm.weight"]).max() > 1e-4


def test_norms_whose_gradient_is_not_summed_train_wrongly() -> None:
    """Why `replicated_parameter` exists: without it each rank's norms get the gradient of its tokens only."""
    _, gradients = one_process(CONFIG)
    ranks = run_ranks(sharded, 2, CONFIG, True, True)
    for _, actual in ranks:
        assert largest_difference(actual, gradients, norms=False) < 1e-6
        assert largest_difference(actual, gradients, norms=True) > 1e-3
    first, second = (actual["model.norm.weight"] for _, actual in ranks)
    assert not np.allclose(first, second)


def test_tokens_that_do_not_divide_are_refused() -> None:
    for message in run_ranks(refusal, 2):
        assert message.startswith("3 tokens do not divide by parallel.tensor=2")


def refusal() -> str:
    """The network's error for three tokens on two ranks."""
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.tensor_parallel import TensorParallelFactory

    factory = TensorParallelFactory(ProcessGroups.create(Mesh(2, 1)), sequence_parallel=True)
    model = prepared(Transformer(CONFIG, factory), factory.rank, factory.size)
    three = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(InputError) as refused:
        model(three, three, packed_mask(three, three, CONFIG, three.device))
    return str(refused.value)
