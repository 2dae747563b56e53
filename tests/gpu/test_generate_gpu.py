"""Decoding on a GPU: the tokens of the CPU, without synchronisation of the host."""

from __future__ import annotations

import copy
import warnings
from typing import get_args

import numpy as np
import pytest
import torch

from pretrain.model.generate import Order, decode_action_chunk
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


def test_host_synchronises_only_for_the_result() -> None:
    model = small_model().cuda()
    dreams = [dream_prompt(3, 6), dream_prompt(4, 4)]
    without = [np.array(prompt_of(3, 6)), np.array(prompt_of(4, 4))]
    counts = []
    decode_action_chunk(model, dreams, 2, HOT)  # builds rotary tables and kernels
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        for chunk, rows in ((2, 2), (6, 5)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                decode_action_chunk(model, dreams, chunk, HOT, "token")
                decode_images(model, dreams, rows, 3, 64, sampling=HOT, guidance=Guidance(2.0, without))
            counts.append(sum("synchronizing CUDA operation" in str(each.message) for each in caught))
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert counts[0] > 0, "the result itself is waited for"
    assert counts[0] == counts[1], "the number of waits grows with the answer"
