"""Decoding with a cache against forward passes of the whole sequence for every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data.errors import InputError
from data.tokens.vocabulary import ACTION_BIN_END, ACTION_BIN_START, ACTION_END, ACTION_START, IMAGE_START
from pretrain.model.cache import LayerCache
from pretrain.model.decoding_session import Answer, DecodingSession
from pretrain.model.generate import Order, decode_action_chunk, decode_with_entropy
from pretrain.model.generate_images import Guidance, decode_images
from pretrain.model.layers import DecoderLayer
from pretrain.model.sampling import Sampling
from tests.support.chameleon import TINY
from tests.support.decoding import (
    dream_prompt,
    greedy,
    naive_chunk,
    naive_images,
    next_logits,
    prompt_of,
    small_model,
)

ORDERS = get_args(Order)
HOT = Sampling(temperature=2.0, seed=5)


@pytest.mark.parametrize(
    "changes", [{}, {"action_mask": False}, {"history_actions_visible": True}, {"key_value_heads": 2}]
)
def test_every_order_equals_decoding_without_cache(changes: dict[str, Any]) -> None:
    model = small_model(**changes)
    acted = [*prompt_of(2, 3)[:-1], *dream_prompt(7, 2)[1:-1], *prompt_of(3, 2)[1:]]  # an action in the past
    prompts = [prompt_of(0, 5), prompt_of(1, 9, images=2), acted, dream_prompt(4, 6)]
    expected = [naive_chunk(model, prompt, 3, greedy) for prompt in prompts]
    assert len({tuple(block) for chunk in expected for block in chunk}) > 4
    for order in ORDERS:
        assert decode_action_chunk(model, prompts, 3, order=order).tolist() == expected, order


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("action_mask", [True, False])
def test_actions_of_any_width_with_given_bins_equal_decoding_without_cache(
    order: Order, action_mask: bool
) -> None:
    model, given = small_model(action_mask=action_mask), {0: 10_100, 3: 10_133}
    prompts = [prompt_of(0, 5), prompt_of(1, 9, images=2)]
    for numbers, fixed in ((4, given), (1, {}), (9, {8: 10_200})):
        expected = [naive_chunk(model, prompt, 2, greedy, numbers, fixed) for prompt in prompts]
        found = decode_action_chunk(model, prompts, 2, order=order, action_dim=numbers, given=fixed)
        assert found.tolist() == expected
        assert all((found[:, :, dimension] == bin_id).all() for dimension, bin_id in fixed.items())


@pytest.mark.parametrize("order", ORDERS)
def test_entropy_is_that_of_the_distributions_that_bins_are_chosen_from(order: Order) -> None:
    model, prompt, given = small_model(), prompt_of(0, 5), {2: 10_100}
    plain = decode_action_chunk(model, [prompt], 2, order=order, given=given)
    bins, entropy = decode_with_entropy(model, [prompt], 2, order=order, given=given)
    np.testing.assert_array_equal(bins, plain)
    assert entropy is not None
    assert (entropy[0, :, 2] == 0).all(), "a given bin is not chosen"
    for block in range(2):
        for number in (0, 1, 3, 4, 5, 6):
            chosen = [[ACTION_START, *row.tolist(), ACTION_END] for row in bins[0, :block]]
            tokens = [
                *prompt,
                *np.ravel(chosen).astype(int).tolist(),
                ACTION_START,
                *bins[0, block, :number].tolist(),
            ]
            logits = next_logits(model, tokens)[ACTION_BIN_START:ACTION_BIN_END].double()
            expected = -(logits.softmax(0) * logits.log_softmax(0)).sum()
            assert entropy[0, block, number] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(("start", "block"), [(ACTION_START, 1), (IMAGE_START, 0)])
def test_two_actions_after_the_last_image_are_masked_as_in_training(start: int, block: int) -> None:
    # Blocks before an image are plain causal; blocks before more actions count as answers, which hide. What
    # one prompt action saw of the other reaches the answer over the end of the turn: in the third layer.
    model = small_model(layers=4)
    prompt = [*dream_prompt(5, 3)[:-1], *dream_prompt(6, 0)[-10:]]
    assert prompt.count(ACTION_START) == 2
    prompts = [prompt, prompt_of(1, 9)]
    answer = Answer(np.array([start]), np.array([block]), np.array([0]))
    session = DecodingSession(model, prompts, answer)
    hidden = session.forward([0])
    for row, tokens in enumerate([*each, start] for each in prompts):
        actual = session.logits(hidden[row, 0], 0, TINY.vocabulary_size)
        torch.testing.assert_close(actual, next_logits(model, tokens), atol=1e-4, rtol=0)


def test_answer_does_not_depend_on_the_other_prompts() -> None:
    model = small_model()
    prompts = [prompt_of(0, 5), prompt_of(1, 40, images=3), prompt_of(2, 1)]
    for temperature in (0.0, 2.0):
        whole = Sampling(temperature, environments=[4, 9, 2])
        together = decode_action_chunk(model, prompts, 4, whole)
        dreams = decode_images(model, prompts, 2, 3, 64, sampling=whole)
        for row, (prompt, number) in enumerate(zip(prompts, (4, 9, 2), strict=True)):
            alone = Sampling(temperature, environments=[number])
            np.testing.assert_array_equal(decode_action_chunk(model, [prompt], 4, alone)[0], together[row])
            np.testing.assert_array_equal(
                decode_images(model, [prompt], 2, 3, 64, sampling=alone)[0], dreams[row]
            )


# Views and time steps: V images of each of P time steps, after P actions.
SHAPES = [(1, 1), (2, 1), (2, 2)]


@pytest.mark.parametrize(("views", "steps"), SHAPES)
def test_image_decoding_equals_decoding_without_cache(views: int, steps: int) -> None:
    model = small_model()
    prompts = [dream_prompt(3, 6, views, steps), dream_prompt(4, 4, views, steps)]
    images = views * steps
    expected = [naive_images(model, prompt, 3, 2, greedy, images=images) for prompt in prompts]
    assert decode_images(model, prompts, rows=3, columns=2, pixels=64, images=images).tolist() == expected
    assert np.max(expected) >= 16
    assert images == 1 or any(image != found[0] for found in expected for image in found[1:])
    few = decode_images(model, prompts, rows=3, columns=2, pixels=64, codebook_size=16, images=images)
    assert few.max() < 16


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(2.0, top_k=50, seed=1)])
@pytest.mark.parametrize(("views", "steps"), SHAPES)
def test_guided_images_equal_guidance_without_cache(sampling: Sampling, views: int, steps: int) -> None:
    model = small_model()
    prompts = [dream_prompt(3, 6, views, steps), dream_prompt(4, 4, views, steps)]
    without = [prompt_of(3, 6, views), prompt_of(4, 4, views)]  # the same, but for the actions
    assert [len(a) - len(b) for a, b in zip(prompts, without, strict=True)] == [9 * steps] * 2
    images = views * steps
    noise = sampling.noise(2, (images, 6), 8192, torch.device("cpu"))

    def choose(row: int) -> Callable[[Tensor, int, int], int]:
        return lambda logits, image, place: int(
            sampling.choose(logits, None if noise is None else noise[row, image, place])
        )

    def actual(prompts: list[list[int]], guidance: Guidance | None) -> list[Any]:
        found = decode_images(model, prompts, 3, 2, 64, sampling=sampling, guidance=guidance, images=images)
        return found.tolist()

    expected = [
        naive_images(model, p, 3, 2, choose(b), without[b], 3.0, images) for b, p in enumerate(prompts)
    ]
    assert actual(prompts, Guidance(3.0, without)) == expected
    unguided = actual(prompts, None)
    assert unguided == [naive_images(model, p, 3, 2, choose(b), images=images) for b, p in enumerate(prompts)]
    assert unguided != expected
    assert actual(prompts, Guidance(1.0, without)) == unguided
    assert actual(prompts, Guidance(0.0, without)) == actual(without, None)


def test_the_first_image_is_the_one_that_is_decoded_alone() -> None:
    model = small_model()
    prompts = [dream_prompt(3, 6), dream_prompt(4, 4)]
    for sampling in (Sampling(), HOT):
        alone = decode_images(model, prompts, 3, 2, 64, sampling=sampling)
        several = decode_images(model, prompts, 3, 2, 64, sampling=sampling, images=3)
        assert (alone.shape, several.shape) == ((2, 1, 3, 2), (2, 3, 3, 2))
        np.testing.assert_array_equal(several[:, :1], alone)


def test_parallel_decoding_takes_seven_forward_passes_for_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    sizes: list[tuple[int, ...]] = []
    read = model.decode
    monkeypatch.setattr(
        model, "decode", lambda ids, *rest: (sizes.append(tuple(ids.shape)), read(ids, *rest))[1]
    )
    expected = {"parallel": [(2, 20)] * 7, "block": [(2, 1)] * 7 * 20, "token": [(2, 1)] * (9 * 20 - 2)}
    for order in ORDERS:
        sizes.clear()
        decode_action_chunk(model, [prompt_of(0, 3), prompt_of(1, 9)], 20, order=order)
        assert sizes == expected[order]


def test_last_layer_is_not_computed_for_prompts() -> None:
    model = small_model()
    last = model.model.layers[-1]
    assert isinstance(last, DecoderLayer)
    rows: list[int] = []
    last.mlp.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].numel() // 32))
    decode_action_chunk(model, [prompt_of(0, 9)], 3)
    assert rows == [3] * 7


class SynchronisationCounter(TorchDispatchMode):
    """Records operations whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_host_never_synchronises_during_decoding() -> None:
    model = small_model()
    prompts = [dream_prompt(3, 6), dream_prompt(4, 4)]
    counts = []
    for chunk, rows in ((2, 2), (6, 5)):
        with SynchronisationCounter() as counter:
            decode_action_chunk(model, prompts, chunk, HOT, "token")
            decode_images(
                model, prompts, rows, 3, 64, sampling=HOT, guidance=Guidance(2.0, prompts), images=2
            )
        counts.append(len(counter.names))
    assert counts[0] == counts[1], "the number of waits grows with the answer"


def test_half_precision_is_decoded_with_caches_of_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[Tensor] = []
    append = LayerCache.append

    def noting(self: LayerCache, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = append(self, key, value)
        buffers.append(keys)
        return keys, values

    monkeypatch.setattr(LayerCache, "append", noting)
    model = small_model(key_value_heads=2).bfloat16()
    for text in (5, 20):  # prompts of two lengths, one shape
        bins = decode_action_chunk(model, [prompt_of(0, text)], 3)
        assert bins.shape == (1, 3, 7)
    layers = TINY.layers
    steps = [*buffers[layers : 8 * layers], *buffers[9 * layers :]]
    assert len(steps) == 2 * 7 * layers
    assert {(keys.dtype, keys.shape[:2]) for keys in steps} == {(torch.bfloat16, (1, 2))}
    capacity = 64
    assert steps[0].untyped_storage().nbytes() == layers * 2 * 2 * capacity * TINY.head_size * 2
    assert len({keys.data_ptr() for keys in steps}) == layers, "a buffer stays at its address"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            [prompt_of(0, 4), prompt_of(0, 235)],
            r"prompt 1 of 2 .* 247 \+ 27 = 274 positions.*max_positions is 256",
        ),
        ([[0, 16_384]], "token id 16384, expected 0 to 16383"),
        ([[0, -1]], "token id -1"),
        ([], "found no prompt"),
        ([[0], []], "prompt 1 of 2 is empty"),
        ([[[0, 1]]], r"prompt 0 of 1 is int64 \[1, 2\]"),
        ([[0.5, 1.0]], "prompt 0 of 1 is float64"),
    ],
)
def test_invalid_prompts_are_refused(prompts: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_action_chunk(small_model(), prompts, 3)


def test_wrong_requests_are_refused() -> None:
    model, prompts = small_model(), [prompt_of(0, 4)]
    with pytest.raises(InputError, match="chunk=0"):
        decode_action_chunk(model, prompts, 0)
    with pytest.raises(InputError, match="order=random: expected one of parallel, block, token"):
        decode_action_chunk(model, prompts, 1, order="random")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="2 environments for 1 prompts"):
        decode_action_chunk(model, prompts, 1, Sampling(1.0, environments=[0, 1]))
    with pytest.raises(InputError, match="2 unconditional prompts for 1 prompts"):
        decode_images(model, prompts, 2, 2, 64, guidance=Guidance(2.0, prompts * 2))
    with pytest.raises(InputError, match="images=0: expected at least one"):
        decode_images(model, prompts, 2, 2, 64, images=0)
    with pytest.raises(InputError, match="answer needs token ids up to 15004"):
        decode_action_chunk(small_model(vocabulary_size=12_000), [[0]], 1)
    for temperature in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"temperature={temperature}"):
            Sampling(temperature)
    with pytest.raises(InputError, match="top_k=0"):
        Sampling(1.0, top_k=0)
    with pytest.raises(InputError, match="seed=-1"):
        Sampling(1.0, seed=-1)
    for scale in (-1.0, float("nan")):
        with pytest.raises(InputError, match="guidance scale"):
            Guidance(scale, prompts)
