"""Decoding on a GPU: the tokens of the CPU, without synchronisation of the host."""

from __future__ import annotations

import copy
import warnings
from typing import get_args

import numpy as np
import pytest
import torch

from pretrain.model.decoding.buffers import pool_of
from pretrain.model.decoding_session import DecodingSession
from pretrain.model.generate import Order, chunk_answer, decode_action_chunk
from pretrain.model.generate_images import Guidance, decode_images
from pretrain.model.sampling import Sampling
from tests.support.decoding import dream_prompt, prompt_of, small_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

HOT = Sampling(temperature=2.0, seed=5)


def test_samples_are_those_of_the_cpu_in_every_order() -> None:
    host = small_model()
    device = copy.deepcopy(host).cuda()
    prompts = [prompt_of(0, 5), prompt_of(1, 9)]
    expected = decode_action_chunk(host, prompts, 4, HOT)
    for order in get_args(Order):
        actual = decode_action_chunk(device, prompts, 4, HOT, order)
        assert (actual == expected).mean() > 0.9, order
    dreams, without = [dream_prompt(3, 6), dream_prompt(4, 4)], [prompt_of(3, 6), prompt_of(4, 4)]
    codes = [
        decode_images(model, dreams, 3, 2, 64, sampling=HOT, guidance=Guidance(3.0, without))
        for model in (host, device)
    ]
    assert (codes[0] == codes[1]).mean() > 0.8


def test_half_precision_with_shared_heads_is_decoded() -> None:
    model = small_model(key_value_heads=2).bfloat16().cuda()
    for order in get_args(Order):
        bins = decode_action_chunk(model, [prompt_of(0, 5), prompt_of(1, 9)], 4, order=order)
        assert bins.shape == (2, 4, 7)


def test_replayed_steps_choose_what_uncaptured_ones_choose(caplog: pytest.LogCaptureFixture) -> None:
    model = small_model().cuda()
    for seed in (0, 1):  # the second time all steps are replayed
        prompts = [prompt_of(seed, 5), prompt_of(seed + 7, 9)]
        for order in get_args(Order):
            found, expected = (
                decode_action_chunk(model, prompts, 4, HOT, order, graphs=each) for each in ("auto", "off")
            )
            assert (found == expected).mean() > 0.9, order  # masked slots change the order of summation
    graphs = pool_of(model).graphs(model.lm_head.weight.device)
    assert graphs is not None
    assert graphs.failure is None
    assert not caplog.records


def test_prompts_with_hidden_actions_are_prefilled_under_a_block_sparse_mask() -> None:
    host = small_model(hidden_size=64, heads=2).bfloat16()
    device = copy.deepcopy(host).cuda()
    hiding = [*dream_prompt(5, 3)[:-1], *dream_prompt(6, 0)[-10:]]  # two actions after the last image
    answer = chunk_answer(2, 7, {})
    found, expected = (
        DecodingSession(model, [hiding, prompt_of(1, 9)], answer).forward([0, 9]).float().cpu()
        for model in (device, host)
    )
    assert torch.isfinite(found).all()
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_host_synchronises_only_for_the_result() -> None:
    model = small_model().cuda()
    dreams = [dream_prompt(3, 6), dream_prompt(4, 4)]
    without = [np.array(prompt_of(3, 6)), np.array(prompt_of(4, 4))]
    counts = []
    guidance = Guidance(2.0, without)
    for chunk, rows in ((2, 2), (6, 5)):  # captures the steps, for which the host waits
        decode_action_chunk(model, dreams, chunk, HOT, "token")
        decode_images(model, dreams, rows, 3, 64, sampling=HOT, guidance=guidance)
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        for chunk, rows in ((2, 2), (6, 5)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                decode_action_chunk(model, dreams, chunk, HOT, "token")
                decode_images(model, dreams, rows, 3, 64, sampling=HOT, guidance=guidance)
            counts.append(sum("synchronizing CUDA operation" in str(each.message) for each in caught))
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert counts[0] > 0, "the result itself is waited for"
    assert counts[0] == counts[1], "the number of waits grows with the answer"
