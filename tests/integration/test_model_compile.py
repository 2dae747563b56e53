"""The element-wise functions under torch.compile: the same numbers, few compilations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

from pretrain.model.cache import DecodingCache
from pretrain.model.config import ModelConfig
from pretrain.model.pointwise import compiled
from pretrain.model.transformer import Transformer, initialise
from tests.support.compiling import needs_compiler
from tests.unit.test_pretrain_model_recompute import gradients

SMALL = ModelConfig(
    vocabulary_size=256, hidden_size=64, ffn_size=160, layers=3, heads=4, max_positions=64, dropout=0.0
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@needs_compiler
@pytest.mark.parametrize(("policy", "most"), [("none", 4), ("selective", 8)])
def test_compiled_gradients_equal_eager_ones(policy: str, most: int) -> None:
    expected = gradients(dropout=0.1, recompute=policy)
    assert graphs() == 0
    with inductor_config.patch(fallback_random=True):  # else compiled dropout draws other values
        found = gradients(dropout=0.1, recompute=policy, compile="on")
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-7, msg=name)
    # One for each of four functions; in `selective` for going and for coming back, but for that with dropout,
    # and one for the norm that is recomputed from a saved sum.
    assert 0 < graphs() <= most


def decoded(model: Transformer, prompt: int, steps: int) -> list[Tensor]:
    """Hidden states of a few tokens after a prompt."""
    cache = DecodingCache(SMALL, 2, prompt + steps, torch.device("cpu"), torch.float32)
    found = []
    with torch.inference_mode():
        for start, end in ((0, prompt), *((prompt + i, prompt + i + 1) for i in range(steps))):
            slots = torch.arange(start, end)
            positions = slots.expand(2, -1)
            found.append(model.decode(positions + 7, positions, positions * 0, slots, cache))
    return found


@needs_compiler
def test_decoding_is_not_compiled_again_for_each_length() -> None:
    eager, model = (Transformer(ModelConfig(**{**SMALL.__dict__, "compile": c})) for c in ("off", "on"))
    initialise(eager, 0)
    initialise(model, 0)
    eager.eval()
    model.eval()
    for prompt in (5, 9):
        decoded(model, prompt, 3)
    before = graphs()
    assert before > 0
    for prompt in range(10, 20):
        for ours, theirs in zip(decoded(model, prompt, 4), decoded(eager, prompt, 4), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert graphs() == before


def test_auto_compiles_on_a_gpu_alone() -> None:
    doubled = compiled(lambda x: x * 2, "auto")
    assert doubled(torch.ones(2)).tolist() == [2, 2]
    assert graphs() == 0
