"""The block-sparse mask against the dense one, and FlexAttention under it against the reference."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pretrain.model.attention import flex
from pretrain.model.attention.call import attention
from pretrain.model.attention.dense import DenseMask
from pretrain.model.attention.flex import FlexMask, flash_block
from pretrain.model.attention.intervals import intervals
from pretrain.model.mask import effective_blocks
from tests.support.compiling import needs_compiler
from tests.support.drawn_packings import packings
from tests.support.packings import Packing, action_sample, packing, worldvla

CPU = torch.device("cpu")
# Blocks of tokens that hold parts of two answer blocks, or of one and ordinary tokens.
STRADDLING = packing([[action_sample(7, 2, 10, end=9)]], 40)
BLOCK_SIZES = [(1, 1), (4, 4), (16, 8), (8, 16), (128, 128), (256, 128)]


def dense(segments: Tensor, blocks: Tensor) -> Tensor:
    """The reference over all tokens of all rows, bool [B * S, B * S]."""
    return torch.block_diag(*DenseMask.packed(segments, blocks).dense[:, 0].to(torch.uint8)).bool()


def listed(counts: Tensor | None, columns: Tensor | None, width: int) -> Tensor:
    """The pairs of blocks listed by a block mask, bool [R, C]."""
    assert counts is not None
    assert columns is not None
    named = torch.zeros(counts.shape[-1], width, dtype=torch.bool)
    for row, count in enumerate(counts[0, 0].tolist()):
        named[row, columns[0, 0, row, :count].long()] = True
    return named


def spread(pairs: Tensor, block_mask: BlockMask, length: int) -> Tensor:
    """Pairs of blocks as pairs of tokens, bool [T, T]."""
    rows, columns = block_mask.BLOCK_SIZE
    return pairs.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:length, :length]


@settings(deadline=None)
@given(packings(), st.sampled_from(BLOCK_SIZES), st.booleans(), st.booleans(), st.booleans())
@example(STRADDLING, (4, 4), True, False, False)
@example(STRADDLING, (4, 4), True, False, True)
def test_block_mask_covers_exactly_the_visible_pairs(
    packed: Packing, block_size: tuple[int, int], action_mask: bool, history: bool, by_ids: bool
) -> None:
    segments, blocks = packed[0], effective_blocks(packed[1], action_mask, history)
    with rule_by_ids() if by_ids else nullcontext():
        mask_of_blocks = FlexMask.packed(segments, blocks, CPU, block_size).block_mask
    expected = dense(segments, blocks)
    length, (queries, keys) = segments.numel(), block_size
    assert mask_of_blocks.shape == (1, 1, length, length)
    partial = listed(mask_of_blocks.kv_num_blocks, mask_of_blocks.kv_indices, -(-length // keys))
    full = listed(mask_of_blocks.full_kv_num_blocks, mask_of_blocks.full_kv_indices, -(-length // keys))
    assert not (partial & full).any()
    assert not (expected & ~spread(partial | full, mask_of_blocks, length)).any()
    assert expected[spread(full, mask_of_blocks, length)].all()
    assert not full[length // queries :].any()
    assert not full[:, length // keys :].any()
    assert torch.equal(mask_of_blocks.to_dense()[0, 0].bool(), partial | full)
    # The backward pass reads the same structure by columns.
    for rows, (counts, indices) in (
        (partial, (mask_of_blocks.q_num_blocks, mask_of_blocks.q_indices)),
        (full, (mask_of_blocks.full_q_num_blocks, mask_of_blocks.full_q_indices)),
    ):
        assert torch.equal(listed(counts, indices, -(-length // queries)), rows.T)
    # The rule of the partial blocks is the reference token by token.
    index = torch.arange(length)
    zero = torch.zeros((), dtype=torch.int64)
    assert torch.equal(mask_of_blocks.mask_mod(zero, zero, index[:, None], index[None]), expected)


def rule_by_ids() -> AbstractContextManager[object]:
    """Builds masks that have the form of intervals by the general rule, too."""
    return mock.patch.object(flex, "intervals", return_value=None)


@settings(deadline=None)
@given(packings(), st.booleans(), st.booleans())
def test_intervals_are_the_visible_keys_or_none(packed: Packing, action_mask: bool, history: bool) -> None:
    segments, blocks = packed[0], effective_blocks(packed[1], action_mask, history)
    actual = intervals(segments, blocks)
    if actual is None:
        assert (blocks > 0).any()
        return
    index = np.arange(segments.numel())
    start, end, own = (each[:, None] for each in (actual.start, actual.end, actual.own))
    visible = (index >= start) & (index <= index[:, None]) & ((index < end) | (index >= own))
    assert torch.equal(torch.from_numpy(visible), dense(segments, blocks))


def test_packed_training_samples_have_the_form_of_intervals() -> None:
    segments, blocks = worldvla(1000, 2, image=20)
    actual = intervals(segments, blocks)
    assert actual is not None
    first = blocks[0].tolist().index(1)  # the first answer token
    assert (actual.start[first], actual.end[first], actual.own[first]) == (0, first, first)
    assert (actual.end[first + 10], actual.own[first + 10]) == (first, first + 9)
    assert actual.start[1000] == 1000
    assert intervals(*packing([[action_sample(10, 2, 3, history=1)]], 20)) is None
    assert intervals(*packing([[[0, 1, 0, 2]]], 4)) is None
    assert intervals([[1, 2, 1]], [[0, 0, 0]]) is None


@pytest.mark.parametrize("by_ids", [False, True])
def test_blocks_of_one_sample_are_full_and_those_of_two_are_skipped(by_ids: bool) -> None:
    segments = torch.tensor([[1] * 10 + [2] * 12 + [0] * 2])
    with rule_by_ids() if by_ids else nullcontext():
        mask_of_blocks = FlexMask.packed(segments, torch.zeros_like(segments), CPU, (4, 4)).block_mask
    partial = listed(mask_of_blocks.kv_num_blocks, mask_of_blocks.kv_indices, 6)
    full = listed(mask_of_blocks.full_kv_num_blocks, mask_of_blocks.full_kv_indices, 6)
    drawn = ["".join(".#/"[kind] for kind in row) for row in (full + 2 * partial).tolist()]
    assert drawn == ["/.....", "#/....", "///...", "..//..", "../#/.", "..////"]


@pytest.mark.parametrize("by_ids", [False, True])
def test_answer_blocks_that_fill_whole_blocks_skip_one_another(by_ids: bool) -> None:
    segments, blocks = packing([[action_sample(8, chunk=3, width=8)]], 40)
    with rule_by_ids() if by_ids else nullcontext():
        mask_of_blocks = FlexMask.packed(segments, blocks, CPU, (4, 4)).block_mask
    named = mask_of_blocks.to_dense()[0, 0].bool()
    assert not named[4:6, 2:4].any()
    assert not named[6:8, 2:6].any()
    assert named[4:8, :2].all()
    assert listed(mask_of_blocks.full_kv_num_blocks, mask_of_blocks.full_kv_indices, 10)[4:8, :2].all()


def test_block_sizes_of_flash_attention_4() -> None:
    assert flash_block((9, 0)) == (128, 128)
    assert flash_block((10, 0)) == (256, 128)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "compiled_attention", lambda: flex_attention)


def heads(packed: Packing, query_heads: int, shared: int, size: int) -> list[Tensor]:
    """Random queries, keys and values, in the memory layout of the layers."""
    generator = torch.Generator().manual_seed(0)
    batch, length = packed[0].shape
    return [
        torch.randn(batch, length, n, size, generator=generator).transpose(1, 2)
        for n in (query_heads, shared, shared)
    ]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("query_heads", "shared"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("packed", [worldvla(300, 2, image=20), packing([[[0, 1, 0, 2]], [[1, 1]]], 7)])
def test_rows_attended_as_one_sequence_equal_the_reference(
    packed: Packing, query_heads: int, shared: int
) -> None:
    query, key, value = heads(packed, query_heads, shared, size=8)
    actual = attention(query, key, value, FlexMask.packed(*packed, CPU, options={}))
    expected = attention(query, key, value, DenseMask.packed(*packed))
    torch.testing.assert_close(actual, expected)


@needs_compiler
@pytest.mark.parametrize("by_ids", [False, True])
def test_compiled_attention_equals_the_reference_and_compiles_once_for_all_masks(by_ids: bool) -> None:
    """The compiled kernel of the CPU skips empty blocks, so a wrongly listed block shows."""
    stance = "default"
    for image in (20, 31, 50):
        packed = worldvla(500, 2, image)
        query, key, value = heads(packed, query_heads=4, shared=2, size=16)
        with torch.compiler.set_stance(stance), rule_by_ids() if by_ids else nullcontext():
            actual = attention(query, key, value, FlexMask.packed(*packed, CPU, options={}))
        torch.testing.assert_close(actual, attention(query, key, value, DenseMask.packed(*packed)))
        stance = "fail_on_recompile"


def compile_of_torch_2_11(model: Any, *, fullgraph: bool = False, dynamic: bool | None = None) -> Any:
    """The arguments that it takes of those that are used here."""
    return original_compile(model, fullgraph=fullgraph, dynamic=dynamic, backend="eager")


original_compile = torch.compile


@pytest.mark.parametrize("compiler", [partial(torch.compile, backend="eager"), compile_of_torch_2_11])
def test_more_lengths_than_the_default_recompile_limit_are_supported(
    compiler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(flex, "compiled_attention", cache(flex.compiled_attention.__wrapped__))
    limit = torch._dynamo.config.recompile_limit  # type: ignore[attr-defined]
    for length in range(40, 40 + limit + 2):
        packed = worldvla(length, image=10)
        query, key, value = heads(packed, query_heads=2, shared=2, size=8)
        actual = attention(query, key, value, FlexMask.packed(*packed, CPU, options={}))
        torch.testing.assert_close(actual, attention(query, key, value, DenseMask.packed(*packed)))
    assert torch._dynamo.config.recompile_limit == limit  # type: ignore[attr-defined]


def test_mask_is_much_smaller_than_a_dense_one() -> None:
    segments, blocks = worldvla(16_384)
    with torch.profiler.profile(profile_memory=True) as profile:
        FlexMask.packed(segments, blocks, CPU)
    largest = max(event.cpu_memory_usage for event in profile.events() or ())
    assert 0 < largest < 16_384 * 64  # a dense mask takes 16,384 x 16,384 bytes
