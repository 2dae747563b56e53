"""An environment's actions do not depend, to the last bit, on the batch they are decoded in."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data.tokens.image import ImageTokenizer
from eval.policy.batch_invariance import (
    BatchInvariantEncoder,
    DiscreteDecoder,
    invariant_batch_sizes,
    split_into_batches,
)
from pretrain.model.config import ModelConfig
from pretrain.model.generate import decode_action_chunk
from pretrain.model.transformer import Transformer, initialise

CHUNK = 3


@pytest.fixture(scope="module")
def network() -> Transformer:
    made = Transformer(
        ModelConfig(
            vocabulary_size=16_896,
            hidden_size=32,
            ffn_size=64,
            layers=2,
            heads=2,
            max_positions=300,
            dropout=0,
        )
    )
    initialise(made, seed=0)
    for parameter in made.parameters():  # larger weights: logits that differ from prompt to prompt
        if parameter.dim() > 1:
            parameter.data *= 8
    return made.eval()


def prompts(count: int, seed: int = 0) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 8000, rng.integers(20, 150)) for _ in range(count)]


def test_chunks_are_the_same_alone_and_in_any_batch(network: Transformer) -> None:
    rows = prompts(11)
    alone = [DiscreteDecoder(network, CHUNK, max_batch=4).decode([row])[0] for row in rows]
    assert len({chunk.tobytes() for chunk in alone}) > 5
    decoder = DiscreteDecoder(network, CHUNK, max_batch=4)
    for order in (np.arange(11), np.arange(11)[::-1], np.random.default_rng(1).permutation(11)[:6]):
        together = decoder.decode([rows[i] for i in order])
        for row, number in enumerate(order):
            np.testing.assert_array_equal(together[row], alone[number])


def test_logits_are_bitwise_equal_at_every_size_in_use(network: Transformer) -> None:
    decoder, (row,) = DiscreteDecoder(network, CHUNK, max_batch=4), prompts(1)
    sizes = decoder._batch_sizes(128, row)
    others = [other[:60] for other in prompts(8, seed=5) if len(other) >= 60]
    expected = decoder.probe([row] * sizes[0], 128)[0]
    for size in sizes:
        for position in range(size):
            filled = [others[i % len(others)] for i in range(size)]
            filled[position] = row
            np.testing.assert_array_equal(decoder.probe(filled, 128)[position], expected)


def test_padding_does_not_change_the_decoded_bins(network: Transformer) -> None:
    rows = prompts(4)
    for row in rows:
        plain = decode_action_chunk(network, [row], CHUNK)
        np.testing.assert_array_equal(decode_action_chunk(network, [row], CHUNK, width=192), plain)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        (lambda size, row: 0.0, (1, 2, 4, 8)),
        (lambda size, row: 1e-7 if size < 4 else 0.0, (8,)),  # small batches take another kernel
        (lambda size, row: 1e-7 * row, (1,)),  # each row another one
    ],
)
def test_sizes_that_do_not_agree_are_not_used(rounding, expected: tuple[int, ...]) -> None:
    def run(size: int) -> NDArray[np.float32]:
        return np.array([[1.0 + rounding(size, row)] for row in range(size)], np.float32)

    assert invariant_batch_sizes(run, 6) == expected


def test_batches_hold_every_row_once() -> None:
    assert split_into_batches(11, (1, 2, 4)) == [(4, 4), (4, 4), (3, 4)]
    assert split_into_batches(3, (8,)) == [(3, 8)]
    assert split_into_batches(2, (1,)) == [(1, 1), (1, 1)]


def test_frames_are_encoded_as_they_would_be_alone() -> None:
    tokenizer = ImageTokenizer.load()
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    together = BatchInvariantEncoder(tokenizer, max_batch=4).encode(frames)
    for frame, codes in zip(frames, together, strict=True):
        np.testing.assert_array_equal(
            BatchInvariantEncoder(tokenizer, max_batch=4).encode(frame[None])[0], codes
        )
