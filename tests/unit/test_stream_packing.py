"""Packing: nothing cut or lost, everything where it belongs; layouts exact and full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import MixtureConfig
from data.errors import InputError
from data.stream.packing import pack, sample_layout
from data.stream.sequence import Sample

EVEN = MixtureConfig()


def make_sample(length: int, start: int) -> Sample:
    values = np.arange(start, start + length, dtype=np.int32)
    return Sample(tokens=values, labels=values + 1, blocks=values % 3 - 1)


@given(lengths=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=5))
def test_every_sample_lies_whole_in_its_row(lengths: list[list[int]]) -> None:
    rows = [
        [make_sample(n, 100 * b + 10 * i + 5) for i, n in enumerate(row)] for b, row in enumerate(lengths)
    ]
    batch = pack(rows, sequence_length=40)
    for b, row in enumerate(rows):
        end = 0
        for number, sample in enumerate(row, start=1):
            place = slice(end, end + len(sample))
            assert np.array_equal(batch.tokens[b, place], sample.tokens)
            assert np.array_equal(batch.labels[b, place], sample.labels)
            assert np.array_equal(batch.blocks[b, place], sample.blocks)
            assert np.array_equal(batch.positions[b, place], np.arange(len(sample)))
            assert (batch.segments[b, place] == number).all()
            end += len(sample)
        for name, padding in (
            ("tokens", 0),
            ("labels", -100),
            ("positions", 0),
            ("segments", 0),
            ("blocks", 0),
        ):
            values = getattr(batch, name)
            assert values.shape == (len(rows), 40)
            assert values.dtype == np.int32
            assert (values[b, end:] == padding).all()


def test_a_row_that_is_too_long_is_never_cut() -> None:
    with pytest.raises(ValueError, match="9 tokens do not fit a sequence of 8"):
        pack([[make_sample(4, 0), make_sample(5, 0)]], sequence_length=8)


@given(
    action=st.integers(1, 60),
    world=st.integers(1, 60),
    sequences=st.integers(1, 33),
    length=st.integers(1, 300),
    weights=st.sampled_from([(1.0, 1.0), (1.0, 2.0), (0.3, 0.7), (2.5, 0.5), (1.0, 0.0), (0.0, 1.0)]),
)
@settings(max_examples=300, deadline=None)
def test_layouts_fit_and_are_exact(
    action: int, world: int, sequences: int, length: int, weights: tuple[float, float]
) -> None:
    try:
        layout = sample_layout(MixtureConfig(*weights), action, world, sequences, length)
    except InputError:
        used = [n for n, weight in zip((action, world), weights, strict=True) if weight]
        shares = [weight / sum(weights) for weight in weights]
        # Refused only when small: a sequence that takes a whole mixture group always works.
        assert max(used) * 10 * max(1, 1 / min(s for s in shares if s)) > length
        return
    actions, worlds = layout
    assert layout.shape == (2, sequences)
    assert (layout >= 0).all()
    assert (actions * action + worlds * world <= length).all()
    assert (actions + worlds > 0).all()
    share = actions.sum() / layout.sum()
    wanted = weights[0] / sum(weights)
    assert abs(share - wanted) * layout.sum() < 1
    if weights == (1.0, 1.0):
        assert actions.sum() == worlds.sum()


def test_sequences_are_filled() -> None:
    """Action 660, world 582 tokens (256 px): a pair takes 1,242."""
    assert sample_layout(EVEN, 660, 582, 8, 4096).sum(axis=1).tolist() == [24, 24]  # 3 pairs each
    assert sample_layout(EVEN, 660, 582, 8, 8192).sum() * 621 > 0.96 * 8 * 8192
    assert sample_layout(EVEN, 660, 582, 4096, 8192).sum() * 621 > 0.96 * 4096 * 8192


def test_kinds_take_turns_when_only_one_sample_fits() -> None:
    assert sample_layout(EVEN, 660, 582, 4, 700).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]


@pytest.mark.parametrize(
    ("sequences", "length", "message"),
    [
        (8, 600, "longest action sample has 660 tokens, but trainer.sequence_length is 600"),
        (1, 700, "1 sequences of 700 tokens cannot hold"),
        (3, 700, "with no sequence empty"),
    ],
)
def test_too_small_steps_are_refused(sequences: int, length: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample_layout(EVEN, 660, 582, sequences, length)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0)])
def test_senseless_weights_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="mixture weights"):
        sample_layout(MixtureConfig(*weights), 660, 582, 8, 4096)


def test_a_kind_that_would_never_come_is_refused() -> None:
    with pytest.raises(InputError, match="cannot hold"):
        sample_layout(MixtureConfig(1.0, 0.0001), 660, 582, 1, 4096)
