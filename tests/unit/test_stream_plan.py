"""The plan: every window once an epoch, the same global batches for any ranks, exact mixture."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.stream.permutation import permute
from data.stream.plan import Kind, Plan

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda x: max(x) >= 3)
PER_SEQUENCE = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6)


def make_plan(lengths: list[int], layout: np.ndarray | None = None, seed: int = 0, chunk: int = 3) -> Plan:
    if layout is None:
        layout = np.array([[2, 1, 1, 2], [1, 2, 2, 1]])
    return Plan(np.array(lengths), chunk, layout, seed, fingerprint="abc")


def expected_windows(lengths: list[int], kind: Kind, chunk: int = 3) -> list[tuple[int, int]]:
    needed = chunk if kind == Kind.ACTION else 2
    return [(e, t) for e, length in enumerate(lengths) for t in range(length - needed + 1)]


@given(size=st.integers(1, 5000), key=st.text(max_size=8))
def test_permutation_is_a_bijection(size: int, key: str) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_permutation_shuffles_evenly() -> None:
    size, bins = 50_000, 20
    order = permute(np.arange(size), size, "even")
    counts = np.histogram2d(np.arange(size), order, bins=bins)[0]
    expected = size / bins**2
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 250 < chi_square < 500  # (bins - 1)^2 = 361 degrees of freedom, far beyond 4 sigma either way
    neighbours = np.abs(np.diff(order))
    assert abs(neighbours.mean() / (size / 3) - 1) < 0.03


def test_permutation_never_changes() -> None:
    """A change of these numbers would silently reorder every run that is resumed."""
    assert permute(np.arange(10), 10, "fixed").tolist() == [7, 8, 4, 5, 2, 0, 1, 3, 6, 9]


@given(lengths=LENGTHS, per_sequence=PER_SEQUENCE, seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_window_comes_once_an_epoch(
    lengths: list[int], per_sequence: list[tuple[int, int]], seed: int
) -> None:
    plan = make_plan(lengths, np.array(per_sequence).T, seed)
    for kind in Kind:
        expected = expected_windows(lengths, kind)
        per_step = plan.samples_per_step(kind)
        if not per_step:
            continue
        epochs = 3
        steps = -(-epochs * len(expected) // per_step)
        seen: list[tuple[int, int]] = []
        for step in range(steps):
            planned = plan.step(step)
            chosen = planned.kinds == kind
            seen += zip(planned.episodes[chosen].tolist(), planned.times[chosen].tolist(), strict=True)
        for epoch in range(epochs):
            assert sorted(seen[epoch * len(expected) : (epoch + 1) * len(expected)]) == expected


@given(lengths=LENGTHS, step=st.integers(0, 10**6), ranks=st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(deadline=None)
def test_any_number_of_ranks_tiles_the_same_global_batch(lengths: list[int], step: int, ranks: int) -> None:
    plan = make_plan(lengths, np.tile([[2, 0, 1], [1, 2, 0]], 4))
    whole = plan.step(step)
    parts = [plan.step(step, *plan.share(rank, ranks)) for rank in range(ranks)]
    for field in ("ids", "sequences", "kinds", "episodes", "times"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        assert np.array_equal(joined, getattr(whole, field))


@given(lengths=LENGTHS, step=st.integers(0, 10**6))
@settings(deadline=None)
def test_every_step_holds_the_layout(lengths: list[int], step: int) -> None:
    plan = make_plan(lengths)
    planned = plan.step(step)
    for kind in Kind:
        held = np.bincount(planned.sequences[planned.kinds == kind], minlength=plan.global_batch)
        assert np.array_equal(held, plan.layout[kind])
    assert (planned.sequences[1:] >= planned.sequences[:-1]).all()


def test_ids_name_windows_uniquely() -> None:
    lengths = [9, 0, 5]
    plan = make_plan(lengths)
    names: dict[int, tuple[int, ...]] = {}
    for step in range(20):
        planned = plan.step(step)
        for i, *window in zip(planned.ids, planned.kinds, planned.episodes, planned.times, strict=True):
            assert names.setdefault(int(i), tuple(map(int, window))) == tuple(window)
    total = sum(len(expected_windows(lengths, kind)) for kind in Kind)
    assert sorted(names) == list(range(total))
    assert len(set(names.values())) == total


def test_seed_epoch_and_data_change_the_order() -> None:
    lengths, layout = [40], np.array([[38], [39]])  # one step is one epoch
    first = make_plan(lengths, layout).step(0)
    again = make_plan(lengths, layout).step(0)
    others = [
        make_plan(lengths, layout).step(1),
        make_plan(lengths, layout, seed=1).step(0),
        Plan(np.array(lengths), 3, layout, 0, fingerprint="changed").step(0),
    ]
    assert np.array_equal(first.ids, again.ids)
    assert not any(np.array_equal(first.ids, other.ids) for other in others)


def test_a_billion_windows_cost_no_more_than_the_step() -> None:
    plan = make_plan([200] * 2_500_000, np.tile([[6], [6]], 4096))
    assert sum(table.count for table in plan.windows) > 990_000_000
    tracemalloc.start()
    planned = plan.step(10**7, *plan.share(4095, 4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(planned.ids) == 12
    assert peak < 1_000_000


@pytest.mark.parametrize("ranks", [3, 0, 8])
def test_ranks_that_cannot_share_are_refused(ranks: int) -> None:
    with pytest.raises(InputError, match=rf"global_batch is 4, which {ranks} data-parallel ranks"):
        make_plan([9]).share(0, ranks)


def test_shares_are_neighbours() -> None:
    plan = make_plan([9])
    shares = [plan.share(rank, 4) for rank in range(4)]
    assert shares[0][0] == 0
    assert shares[-1][1] == 4
    assert all(a[1] == b[0] for a, b in pairwise(shares))


def test_dataset_without_a_kind_is_refused() -> None:
    with pytest.raises(InputError, match="no action window in 2 episodes of at most 2 steps"):
        make_plan([2, 1])
    with pytest.raises(InputError, match="no world window"):
        make_plan([1], np.array([[0], [1]]))
    make_plan([2], np.array([[0], [1]]))  # no action samples wanted


def test_negative_step_is_refused() -> None:
    with pytest.raises(InputError, match="step is -1"):
        make_plan([9]).step(-1)
