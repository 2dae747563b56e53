"""The action mask in three passes of varlen kernels: the same pairs, outputs and gradients as in one."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.model.attention.call import attention
from pretrain.model.attention.dense import DenseMask
from pretrain.model.attention.split_plan import AttentionPass, split
from pretrain.model.attention.varlen import FlashAttention2, VarlenMask, VarlenPass
from pretrain.model.config import ModelConfig, RecomputePolicy
from pretrain.model.mask import effective_blocks
from pretrain.model.transformer import Transformer, initialise
from tests.support.drawn_packings import packings
from tests.support.packings import Packing, action_sample, packing, worldvla
from tests.support.reference_samples import action_sample as real_action_sample
from tests.support.reference_samples import pack
from tests.support.reference_samples import world_sample as real_world_sample
from tests.support.varlen_reference import PlainKernels

CPU = torch.device("cpu")
# Two samples of the same answer block ids, one after the other; block ids that recur; no prompt.
HARD = packing([[[0, 1, 2, 0, 3, 0], [1, 1, 2], [0, 1, -1, 1, 2, 0, 1]], [[-1, 0], [2]]], 20)


def pairs(part: AttentionPass | None, tokens: int) -> Tensor:
    """Number of times that a pass covers each pair of tokens, int [T, T]."""
    named = torch.zeros(tokens, tokens, dtype=torch.int64)
    if part is None:
        return named
    for number in range(len(part.query_starts) - 1):
        queries = part.queries[slice(*part.query_starts[number : number + 2])]
        keys = part.keys[slice(*part.key_starts[number : number + 2])]
        seen = np.ones((len(queries), len(keys)), np.int64)
        seen = np.tril(seen, len(keys) - len(queries)) if part.causal else seen
        named[np.ix_(queries, keys)] += torch.from_numpy(seen)
    return named


@settings(deadline=None)
@given(packings(), st.booleans(), st.booleans())
@example(HARD, True, False)
def test_each_visible_pair_is_in_one_pass_and_no_other_pair_in_any(
    packed: Packing, action_mask: bool, history: bool
) -> None:
    segments, blocks = packed[0], effective_blocks(packed[1], action_mask, history)
    plan = split(segments, blocks)
    named = sum(pairs(part, segments.numel()) for part in (plan.ordinary, plan.prefix, plan.within))
    dense = torch.block_diag(*DenseMask.packed(segments, blocks).dense[:, 0].long())
    assert torch.equal(torch.as_tensor(named), dense)


def test_passes_of_an_action_sample_are_as_in_the_docstring() -> None:
    plan = split([[1] * 7], [[0, 0, 1, 1, 2, 2, 0]])
    drawn = pairs(plan.ordinary, 7) + 2 * pairs(plan.prefix, 7) + 3 * pairs(plan.within, 7)
    assert ["".join(".123"[number] for number in row) for row in drawn.tolist()] == [
        "1......",
        "11.....",
        "223....",
        "2233...",
        "22..3..",
        "22..33.",
        "1111111",
    ]


def test_pass_without_queries_is_none() -> None:
    no_blocks = split([[1, 1, 2, 0]], [[0, 0, 0, 0]])
    assert no_blocks.ordinary is not None
    assert no_blocks.prefix is None
    assert no_blocks.within is None
    only_blocks = split([[1, 1, 1]], [[1, 1, 2]])
    assert only_blocks.ordinary is None
    assert only_blocks.prefix is None
    assert only_blocks.within is not None


def results(mask: DenseMask | VarlenMask, tensors: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """Output and gradients of queries, keys and values."""
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    output = attention(inputs[0], inputs[1], inputs[2], mask)
    return [output, *torch.autograd.grad(output, inputs, gradient)]


def both(packed: Packing, heads: int, shared: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Results of the split and of the reference for the same random queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    batch, length = packed[0].shape
    tensors = [
        torch.randn(batch, length, n, 8, generator=generator, dtype=dtype).transpose(1, 2)
        for n in (heads, shared, shared, heads)
    ]
    split_mask = VarlenMask.packed(*packed, CPU, PlainKernels())
    return (
        results(split_mask, tensors[:3], tensors[3]),
        results(DenseMask.packed(*packed), tensors[:3], tensors[3]),
    )


@settings(deadline=None)
@given(packings(), st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
@example(HARD, (4, 2))
def test_output_and_gradients_equal_the_reference(packed: Packing, heads: tuple[int, int]) -> None:
    actual, expected = both(packed, *heads, torch.float64)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def real_packing() -> Packing:
    """Two rows of training samples at 32 px."""
    generator = np.random.default_rng(0)
    text, image = generator.integers(16_384, 20_000, 9), generator.integers(4, 8_000, 24)
    bins = generator.integers(10_006, 10_261, (5, 7))
    action = real_action_sample(text, [image, image], bins)
    world = real_world_sample(text, image, bins[0], image)
    batch = pack([[action, world, action], [world, action]], 330)
    return torch.from_numpy(batch.segments), torch.from_numpy(batch.blocks)


@pytest.mark.parametrize("packed", [real_packing(), worldvla(400, 2, image=30)])
def test_real_sequences_in_fp32(packed: Packing) -> None:
    actual, expected = both(packed, 4, 2, torch.float32)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_three_calls_a_layer_for_any_number_of_samples() -> None:
    kernels = PlainKernels()
    mask = VarlenMask.packed(*packing([[action_sample(9, 5, 3)] * 9] * 3, 300), CPU, kernels)
    query = torch.randn(3, 2, 300, 8, requires_grad=True)
    attention(query, query, query, mask).sum().backward()
    assert kernels.calls == ["forward"] * 3 + ["backward"] * 3


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_network_has_the_same_gradients(recompute: RecomputePolicy) -> None:
    packed = worldvla(150, 2, image=20)
    tokens = torch.randint(0, 64, packed[0].shape, generator=torch.Generator().manual_seed(0))
    gradients: list[list[Tensor]] = []
    for mask in (VarlenMask.packed(*packed, CPU, PlainKernels()), DenseMask.packed(*packed)):
        config = ModelConfig(
            64, 32, 32, layers=2, heads=4, key_value_heads=2, dropout=0.0, recompute=recompute
        )
        model = Transformer(config)
        initialise(model, 0)
        model(tokens, torch.arange(150).expand(2, 150), mask).logsumexp(-1).mean().backward()
        each = [parameter.grad for parameter in model.parameters()]
        gradients.append([gradient for gradient in each if gradient is not None])
    assert len(gradients[0]) > 20
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


class Interface(types.ModuleType):
    """`flash_attn.flash_attn_interface` with the parameters of version 2.8 and plain kernels behind them."""

    def _flash_attn_varlen_forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int = -1,
        window_size_right: int = -1,
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        return_softmax: bool = False,
        block_table: Tensor | None = None,
        leftpad_k: Tensor | None = None,
        seqused_k: Tensor | None = None,
        zero_tensors: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        part = self.part(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
        assert (dropout_p, softmax_scale, window_size_left, window_size_right) == (0, 8**-0.5, -1, -1)
        output, lse = PlainKernels().forward(q, k, v, part)
        return output, lse, torch.empty(0), torch.empty(2)

    def _flash_attn_varlen_backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        softmax_lse: Tensor,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int,
        window_size_right: int,
        softcap: float,
        alibi_slopes: Tensor | None,
        deterministic: bool,
        rng_state: Tensor | None = None,
        zero_tensors: bool = False,
    ) -> Tensor:
        part = self.part(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
        assert (dropout_p, softmax_scale, window_size_left, window_size_right) == (0, 8**-0.5, -1, -1)
        assert all(tensor.is_contiguous() for tensor in (dout, q, k, v, out, softmax_lse))
        actual = PlainKernels().backward(dout, q, k, v, out, softmax_lse, part)
        for place, gradient in zip((dq, dk, dv), actual, strict=True):
            place.copy_(gradient)
        return torch.empty(0)

    def part(self, *settings: object) -> VarlenPass:
        starts = [setting for setting in settings if isinstance(setting, Tensor)]
        assert [each.dtype for each in starts] == [torch.int32] * 2
        tokens = [torch.arange(int(each[-1])) for each in starts]
        return VarlenPass(*tokens, *settings)  # type: ignore[arg-type]


def test_flash_attention_2_is_called_as_its_signature_says(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "flash_attn.flash_attn_interface"
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, name, Interface(name))
    packed = real_packing()
    tensors = [torch.randn(2, 330, 4, 8, dtype=torch.float64).transpose(1, 2) for _ in range(4)]
    actual = results(VarlenMask.packed(*packed, CPU, FlashAttention2()), tensors[:3], tensors[3])
    expected = results(DenseMask.packed(*packed), tensors[:3], tensors[3])
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def calls_of_split(samples: int) -> int:
    """Number of Python and C functions called to plan samples of five tokens with two answer blocks each."""
    segments = np.repeat(np.arange(1, samples + 1), 5)[None]
    blocks = np.tile([0, 1, 2, 2, 0], samples)[None]
    calls: list[str] = []
    sys.setprofile(lambda frame, event, argument: calls.append(event) if "call" in event else None)
    try:
        plan = split(segments, blocks)
    finally:
        sys.setprofile(None)
    assert plan.within is not None
    assert len(plan.within.query_starts) == 2 * samples + 1
    return len(calls)


def test_large_plan_needs_no_loop_over_samples() -> None:
    assert calls_of_split(13_107) == calls_of_split(10) > 10
