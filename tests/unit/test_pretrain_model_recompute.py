"""Recompute policies: the same gradients, fewer bytes saved."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.model.attention.causal import CausalMask
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig, RecomputePolicy
from pretrain.model.loss import LossSettings
from pretrain.model.recompute import element_wise, run_layer
from pretrain.model.transformer import Transformer, initialise

CONFIG = ModelConfig(
    vocabulary_size=256, hidden_size=64, ffn_size=160, layers=3, heads=4, max_positions=128, dropout=0.0
)
LENGTH = 128


def build_model(**changes: Any) -> Transformer:
    model = Transformer(replace(CONFIG, **changes))
    initialise(model, 0)
    return model.train()


def inputs(model: Transformer) -> tuple[Any, ...]:
    tokens = torch.randint(0, 256, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    ones = torch.ones_like(tokens)
    labelled = torch.arange(LENGTH)
    normaliser = torch.full((2,), float(LENGTH))
    mask = packed_mask(ones, ones * 0, model.config, tokens.device)
    return tokens, labelled[None], mask, labelled, tokens[0], normaliser, LossSettings()


def gradients(**changes: Any) -> dict[str, Tensor]:
    model = build_model(**changes)
    torch.manual_seed(7)
    model(*inputs(model))[0].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def saved_bytes(**changes: Any) -> int:
    """Memory of the network between its forward and its backward pass."""
    model = Transformer(replace(CONFIG, **changes))
    initialise(model, 0)
    model.train()
    tokens, positions, *_ = inputs(model)
    model.model(tokens, positions, CausalMask())  # tables built on first use are not counted
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        hidden = model.model(tokens, positions, CausalMask())
    recorded: Any = profile.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    assert hidden.requires_grad
    return sum(event.nbytes() for event in events)


@pytest.mark.parametrize("policy", ["selective", "full"])
@pytest.mark.parametrize(
    "network",
    [{}, {"dropout": 0.2}, {"swin_norm": True, "key_value_heads": 2, "dropout": 0.2}],
    ids=["7b", "dropout", "34b"],
)
def test_gradients_equal_those_without_recomputation(
    policy: RecomputePolicy, network: dict[str, Any]
) -> None:
    expected = gradients(**network)
    actual = gradients(**network, recompute=policy)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():  # sums over several uses may be in another order
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=1e-8, msg=name)
    assert min(gradient.abs().max() for gradient in expected.values()) > 1e-5


def test_a_backward_pass_in_another_thread_has_the_same_gradients() -> None:
    """As on a GPU; this thread may be in the next forward pass then."""
    changes = {"dropout": 0.2, "recompute": "selective"}
    expected = gradients(**changes)
    model = build_model(**changes)
    torch.manual_seed(7)
    loss, _ = model(*inputs(model))

    def meanwhile(x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as other:
            other.submit(loss.backward).result()
        return x * 1

    run_layer("selective", meanwhile, torch.ones(2, requires_grad=True))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=0, msg=name)


def test_failing_layer_leaves_no_recorder_active() -> None:
    class LayerError(Exception):
        pass

    def failing(x: Tensor) -> Tensor:
        element_wise(torch.sin, x)
        raise LayerError

    with pytest.raises(LayerError):
        run_layer("selective", failing, torch.ones(2, requires_grad=True))
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(None)
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    element_wise(counted, x).square().sum().backward()
    assert len(calls) == 1, "nothing is recomputed outside of a layer"


def test_each_policy_saves_less_memory() -> None:
    """Bytes a layer, from networks of three layers and of one."""
    none, selective, full = (
        (saved_bytes(recompute=policy) - saved_bytes(recompute=policy, layers=1)) / 2
        for policy in ("none", "selective", "full")
    )
    feature = 4 * LENGTH  # fp32, of all tokens
    hidden = feature * CONFIG.hidden_size
    vectors = 6 * 4 * CONFIG.hidden_size  # copies of norms' weights
    # Inputs of both branches, q, k, v and the mixture with its log-sums; gate and up.
    assert selective == 6 * hidden + feature * CONFIG.heads + 2 * feature * CONFIG.ffn_size + vectors
    assert hidden <= full < 1.2 * hidden  # its input and the state of the random generator
    assert none > 2 * selective


def test_the_policy_applies_to_the_first_layers() -> None:
    sizes = [saved_bytes(recompute="full", recompute_layers=layers) for layers in (0, 1, 2, 3, None)]
    assert sizes[0] == saved_bytes()
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] == sizes[4]


def test_model_in_evaluation_recomputes_nothing() -> None:
    model = build_model(recompute="selective").eval()
    expected = build_model().eval()(*inputs(model))
    torch.testing.assert_close(model(*inputs(model)), expected, rtol=0, atol=0)


def test_result_is_recomputed_once_for_all_its_users() -> None:
    calls = 0

    def squared(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * x

    weights = [torch.randn(4, 4, requires_grad=True) for _ in range(3)]

    def layer(x: Tensor) -> Tensor:
        recomputed = element_wise(squared, x)
        return torch.stack([recomputed @ weight for weight in weights]).sum(0)

    x = torch.randn(2, 4, requires_grad=True)
    run_layer("selective", layer, x).sum().backward()
    assert calls == 2, "forward; for the weights' gradients and for its own"
    torch.testing.assert_close(weights[2].grad, (x * x).sum(0, keepdim=True).T.expand(4, 4))


def test_recomputed_result_is_released_after_its_last_use() -> None:
    recomputed: list[weakref.ref[Tensor]] = []

    def squared(x: Tensor) -> Tensor:
        result = x * x
        recomputed.append(weakref.ref(result))
        return result

    alive: list[bool] = []
    weights = [torch.randn(4, 4, requires_grad=True) for _ in range(2)]

    def layer(x: Tensor) -> Tensor:
        x.register_hook(lambda _: alive.append(recomputed[1]() is not None))
        result = element_wise(squared, x)
        return result @ weights[0] + result @ weights[1]

    x = torch.randn(2, 4, requires_grad=True)
    run_layer("selective", layer, x * 1).sum().backward()
    assert alive == [False]


def test_a_second_backward_pass_is_refused() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    loss = run_layer("selective", lambda x: element_wise(torch.sin, x).square(), x * 1).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        loss.backward()


def test_gradients_of_gradients_are_refused() -> None:
    x = torch.randn(4, requires_grad=True)
    result = run_layer("selective", lambda x: element_wise(torch.sin, x) * 2, x * 1).sum()
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(result, x, create_graph=True)


@pytest.mark.parametrize("user", [torch.sin, lambda x: element_wise(torch.sin, x)])
def test_in_place_change_of_a_saved_tensor_is_refused(user: Callable[[Tensor], Tensor]) -> None:
    def layer(x: Tensor) -> Tensor:
        x = x * 1
        result = user(x) * 2
        x.mul_(3)
        return result

    loss = run_layer("selective", layer, torch.ones(2, requires_grad=True)).sum()
    with pytest.raises(
        RuntimeError, match=r"tensor \(2,\) that the backward pass needs was modified in place"
    ):
        loss.backward()
