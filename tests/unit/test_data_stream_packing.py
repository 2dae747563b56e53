"""Packing: no sample cut or lost; layouts exact and full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import MixtureConfig
from data.errors import InputError
from data.stream.order.layout import DatasetWindows
from data.stream.order.mixture import action_share, dataset_shares, step_counts
from data.stream.order.packing import assign_sequences
from data.stream.order.plan import DataPlan, Kind
from data.stream.samples import SampleForm
from data.stream.windows.window_table import WindowTable
from tests.support.reference_samples import Sample, pack

EVEN = MixtureConfig()


def make_sample(length: int, start: int) -> Sample:
    values = np.arange(start, start + length, dtype=np.int32)
    return Sample(tokens=values, labels=values + 1, blocks=values % 3 - 1)


@given(lengths=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=5))
def test_every_sample_is_complete_in_its_row(lengths: list[list[int]]) -> None:
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


def test_a_row_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="9 tokens do not fit a sequence of 8"):
        pack([[make_sample(4, 0), make_sample(5, 0)]], sequence_length=8)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    sequences=st.integers(1, 12),
    length=st.integers(30, 300),
)
@settings(max_examples=300, deadline=None)
def test_all_samples_are_assigned_and_none_is_cut(lengths: list[int], sequences: int, length: int) -> None:
    token_counts = np.array(lengths, np.int64)
    found = assign_sequences(token_counts, sequences, length)
    if found is None:
        # Refused only when it is full: a sequence with room for the longest is never left.
        assert sum(lengths) + sequences * (max(lengths) - 1) >= sequences * (length + 1 - max(lengths))
        return
    assert found.shape == token_counts.shape
    assert 0 <= found.min() <= found.max() < sequences
    assert np.bincount(found, weights=token_counts).max() <= length


@pytest.mark.parametrize("words", [(15, 16), (13, 30), (10, 60)])
@pytest.mark.parametrize("sequences", [16, 64, 1024])
def test_padding_is_at_most_3_percent_at_8192_tokens(words: tuple[int, int], sequences: int) -> None:
    """The 256-pixel mixture of WorldVLA: M = 2, K = 5, as many action as world samples."""
    random, form = np.random.default_rng(0), SampleForm(276)
    steps = random.integers(80, 300, 1000).astype(np.int32)
    texts = random.integers(*words, 10)[random.integers(0, 10, 1000)].astype(np.int32)
    plan = DataPlan([windows(steps, texts, form, world=21)], EVEN, sequences, 8192, seed=0, fingerprint="f")
    for step in (0, 1000):
        planned = plan.step(step)
        action = form.action_length(0, 0) + texts[planned.episodes] + np.minimum(planned.times + 1, 2) * 276
        tokens = np.where(planned.kinds == Kind.ACTION, action, form.world_length(21))
        used = np.bincount(planned.sequences, weights=tokens, minlength=sequences)
        assert used.max() <= 8192
        assert 1 - used.sum() / (sequences * 8192) < 0.03


@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=5), actions=st.integers(0, 90),
    worlds=st.integers(0, 90),
)  # fmt: skip
def test_shares_of_data_sets_are_exact(weights: list[int], actions: int, worlds: int) -> None:
    shares = dataset_shares([float(weight) for weight in weights])
    counts = step_counts(actions, worlds, shares)
    assert counts.sum(axis=0).tolist() == [actions, worlds]
    assert counts.min() >= 0
    for row, share in zip(counts, shares, strict=True):
        assert abs(int(row.sum()) - share * (actions + worlds)) < 1
    totals = counts.sum(axis=1)
    remainders = [share * (actions + worlds) % 1 for share in shares]
    raised = [int(t) > s * (actions + worlds) for t, s in zip(totals, shares, strict=True)]
    up, down = ([r for r, u in zip(remainders, raised, strict=True) if u is one] for one in (True, False))
    assert not up or not down or min(up) >= max(down)  # the largest remainders are those rounded up


def test_impossible_mixtures_are_refused() -> None:
    for mixture in (MixtureConfig(-1, 1), MixtureConfig(0, 0), MixtureConfig(float("nan"), 1)):
        with pytest.raises(InputError, match="mixture weights are action="):
            action_share(mixture)
    with pytest.raises(InputError, match=r"data.sources\[1\].weight is 0"):
        dataset_shares([1, 0])


def windows(steps: np.ndarray, texts: np.ndarray, form: SampleForm, world: int) -> DatasetWindows:
    same = np.full(len(steps), world, np.int32)
    return DatasetWindows(
        "test",
        (
            WindowTable(steps, form.chunk - 1, form.history, texts, form.action_length),
            WindowTable(steps, form.predicted, 1, same, lambda words, frames: form.world_length(words)),
        ),
    )
