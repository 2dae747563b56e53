"""Sampled tokens: the right distribution, and the same tokens in every order of decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from data.tokens.vocabulary import ACTION_BIN_START, ACTION_START
from pretrain.model.generate import Order, decode_action_chunk
from pretrain.model.sampling import Sampling
from tests.support.decoding import (
    BINS,
    greedy,
    naive_chunk,
    next_logits,
    prompt_of,
    small_model,
)

ORDERS = get_args(Order)
HOT = Sampling(temperature=2.0, seed=5)


@pytest.mark.parametrize("action_mask", [True, False])
def test_sampled_tokens_are_the_same_in_every_order(action_mask: bool) -> None:
    model = small_model(action_mask=action_mask)
    prompts = [prompt_of(0, 5), prompt_of(1, 9)]
    noise = HOT.noise(2, (3, 7), 256, torch.device("cpu"))
    assert noise is not None

    def choose(row: Tensor) -> Callable[[Tensor, int, int], int]:
        return lambda logits, *place: int(HOT.choose(logits, row[place]))

    expected = [
        naive_chunk(model, prompt, 3, choose(row)) for prompt, row in zip(prompts, noise, strict=True)
    ]
    assert expected != [naive_chunk(model, prompt, 3, greedy) for prompt in prompts]
    for order in ORDERS:
        assert decode_action_chunk(model, prompts, 3, HOT, order).tolist() == expected, order


@pytest.mark.parametrize("sampling", [Sampling(1.5), Sampling(1.5, top_k=5)])
def test_samples_follow_the_softmax(sampling: Sampling) -> None:
    model = small_model(scale=60)
    prompt = prompt_of(0, 5)
    count = 4000
    noise = sampling.noise(count, (1,), 256, torch.device("cpu"))
    assert noise is not None
    logits = next_logits(model, [*prompt, ACTION_START])[BINS]
    actual = sampling.choose(logits.expand(count, -1), noise[:, 0]).bincount(minlength=256)
    # The decoder draws the same for its first token: these are its samples.
    some = decode_action_chunk(model, [prompt] * 20, 1, sampling)[:, 0, 0]
    assert (some - ACTION_BIN_START == sampling.choose(logits.expand(20, -1), noise[:20, 0]).numpy()).all()

    if sampling.top_k:
        logits = torch.where(logits >= logits.topk(sampling.top_k).values[-1], logits, -torch.inf)
    expected = count * torch.softmax(logits / sampling.temperature, 0)
    likely = expected >= 5
    parts = torch.stack([actual[likely].float(), expected[likely]])
    rest = torch.stack([actual.sum() - actual[likely].sum(), expected.sum() - expected[likely].sum()])
    if rest[1] >= 1:
        parts = torch.cat([parts, rest[:, None]], dim=1)
    else:
        assert rest[0] <= 5
    freedom = parts.shape[1] - 1
    assert freedom >= 4
    chi_square = ((parts[0] - parts[1]) ** 2 / parts[1]).sum()
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five deviations


def test_samples_depend_only_on_seed_environment_and_index() -> None:
    model = small_model()
    prompts = [prompt_of(0, 5)] * 2
    first = decode_action_chunk(model, prompts, 5, HOT)
    np.testing.assert_array_equal(decode_action_chunk(model, prompts, 5, HOT), first)
    np.testing.assert_array_equal(decode_action_chunk(model, prompts, 2, HOT), first[:, :2])
    assert (first[0] != first[1]).any(), "environments draw alike"
    assert (first[:, 0] != first[:, 1]).any(), "blocks draw alike"
    assert (decode_action_chunk(model, prompts, 5, Sampling(2.0, seed=6)) != first).any()
    likeliest = decode_action_chunk(model, prompts, 5, Sampling(2.0, top_k=1))
    np.testing.assert_array_equal(likeliest, decode_action_chunk(model, prompts, 5))
