"""The plan: every window once in an epoch, the same global batches for any ranks, exact mixture."""

from __future__ import annotations

from collections import Counter
from math import isqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import MixtureConfig
from data.errors import InputError
from data.stream.order.layout import DatasetWindows
from data.stream.order.mixture import apportion
from data.stream.order.permutation import _grid, permute, round_keys
from data.stream.order.plan import DataPlan, Kind, PlannedWindows
from data.stream.order.stratified_sampler import StratifiedSampler, largest_draws
from data.stream.samples import SampleForm
from data.stream.windows.window_table import WindowTable

STEPS = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda x: max(x) >= 4)
CHUNK = 3


def dataset_windows(
    steps: list[int], texts: list[int] | None = None, history: int = 2, weight: float = 1.0, image: int = 10
) -> DatasetWindows:
    form = SampleForm(image, history=history, chunk=CHUNK)
    words = np.array(texts or [5] * len(steps), np.int32)
    lengths = np.array(steps, np.int32)
    return DatasetWindows(
        "test",
        (
            WindowTable(lengths, CHUNK - 1, history, words, form.action_length),
            WindowTable(lengths, 1, 1, np.full(len(steps), 7, np.int32), lambda w, _: form.world_length(w)),
        ),
        weight,
    )


def make_plan(
    *datasets: DatasetWindows, seed: int = 0, sequences: int = 4, length: int = 400, world: float = 1.0
) -> DataPlan:
    return DataPlan(datasets, MixtureConfig(1.0, world), sequences, length, seed, fingerprint="abc")


def samples_per_step(plan: DataPlan, kind: Kind) -> int:
    return int(plan.layout.counts[:, kind].sum())


def pairs(windows: PlannedWindows, kind: Kind, dataset: int = 0) -> list[tuple[int, int]]:
    of = (windows.kinds == kind) & (windows.datasets == dataset)
    return list(zip(windows.episodes[of].tolist(), windows.times[of].tolist(), strict=True))


def test_the_grid_of_a_size_is_exact_where_floats_are_not() -> None:
    roots = [1, 2, 3, 1000, 2**16, 94906267, 2**30 + 1, 2**31 - 1, 2**31]
    sizes = [0, *(max(root**2 + off, 0) for root in roots for off in (-2, -1, 0, 1, 2))]
    rows, columns = _grid(np.array(sizes, np.uint64))
    expected = [isqrt(max(size - 1, 0)) + 1 for size in sizes]
    assert rows.tolist() == expected
    assert columns.tolist() == [-(-size // row) for size, row in zip(sizes, expected, strict=True)]


@given(size=st.integers(1, 5000), key=st.text(max_size=8), tweak=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(size: int, key: str, tweak: int) -> None:
    tweaks = np.full(size, tweak, np.uint64)
    assert np.array_equal(np.sort(permute(np.arange(size), size, round_keys(key), tweaks)), np.arange(size))


def test_permutation_shuffles_evenly() -> None:
    size, bins = 50_000, 20
    order = permute(np.arange(size), size, round_keys("even"))
    counts = np.histogram2d(np.arange(size), order, bins=bins)[0]
    expected = size / bins**2
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 250 < chi_square < 500  # 361 degrees of freedom ((bins - 1)^2), beyond 4 sigma either way
    neighbours = np.abs(np.diff(order))
    assert abs(neighbours.mean() / (size / 3) - 1) < 0.03


def test_permutation_never_changes() -> None:
    """A change of these numbers would silently reorder every run that is resumed."""
    assert permute(np.arange(10), 10, round_keys("fixed")).tolist() == [7, 8, 4, 5, 2, 0, 1, 3, 6, 9]
    streams = StratifiedSampler([11, 11, 6], [3, 3, 4], ["fixed", "other", "third"])
    assert streams.draw(1, np.zeros(3, np.int64), np.arange(3)).tolist() == [0, 4, 10]


@given(count=st.integers(1, 60), slots=st.integers(1, 70))
def test_a_slot_draws_from_its_stratum_and_an_epoch_holds_all_windows(count: int, slots: int) -> None:
    streams, all_slots = StratifiedSampler([7, count], [2, slots], ["j", "k"]), np.arange(slots)
    steps = [streams.draw(step, np.ones_like(all_slots), all_slots) for step in range(-(-3 * count // slots))]
    joined = np.concatenate(steps)
    for epoch in range(3):
        assert sorted(joined[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert (np.max(steps, axis=0) <= largest_draws(count, slots)).all()
    assert streams.epochs(len(steps))[1] * count == pytest.approx(len(steps) * slots)


@given(steps=STEPS, texts=st.lists(st.integers(1, 9), min_size=8, max_size=8), history=st.integers(1, 4))
@settings(deadline=None)
def test_every_window_is_numbered_once_from_short_to_long(
    steps: list[int], texts: list[int], history: int
) -> None:
    form = SampleForm(10, history=history, chunk=CHUNK)
    words = np.array(texts[: len(steps)], np.int32)
    table = WindowTable(np.array(steps, np.int32), CHUNK - 1, history, words, form.action_length)
    numbers = np.arange(table.count)
    episodes, times = table.locate(numbers)
    expected = [(e, t) for e, length in enumerate(steps) for t in range(length - CHUNK + 1)]
    assert sorted(zip(episodes.tolist(), times.tolist(), strict=True)) == expected
    lengths = [
        form.action_length(int(words[e]), min(t + 1, history)) for e, t in zip(episodes, times, strict=True)
    ]
    assert table.lengths(numbers).tolist() == lengths == sorted(lengths)
    assert sorted(table.ids(episodes, times).tolist()) == list(range(len(expected)))
    assert table.mean_length == pytest.approx(np.mean(lengths))


@given(
    steps=STEPS, seed=st.integers(0, 5), sequences=st.integers(1, 6), world=st.sampled_from([0, 0.5, 1, 2])
)
@settings(max_examples=60, deadline=None)
def test_every_window_occurs_once_in_an_epoch(
    steps: list[int], seed: int, sequences: int, world: float
) -> None:
    plan = make_plan(dataset_windows(steps), seed=seed, sequences=sequences, world=world)
    actions, worlds = samples_per_step(plan, Kind.ACTION), samples_per_step(plan, Kind.WORLD)
    assert actions > 0
    assert worlds == world * actions  # and so there are world samples wherever they have a weight
    for kind, needed, each in ((Kind.ACTION, CHUNK, actions), (Kind.WORLD, 2, worlds)):
        expected = [(e, t) for e, length in enumerate(steps) for t in range(length - needed + 1)]
        # Within a step the order is that of sequences, so whole steps are compared: epochs end in one.
        seen = Counter[tuple[int, int]]()
        for step in range(len(expected)):  # steps after which every window has occurred `each` times
            seen.update(pairs(plan.step(step), kind))
        assert seen == {window: each for window in expected if each}


@given(step=st.integers(0, 10**9), ranks=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_ranks_tile_the_global_batch(step: int, ranks: int) -> None:
    plan = make_plan(dataset_windows([9, 30, 14]), dataset_windows([40, 8], weight=0.5), sequences=12)
    whole = plan.step(step)
    parts = [plan.step(step, *plan.share(rank, ranks)) for rank in range(ranks)]
    for field in ("sequences", "kinds", "datasets", "episodes", "times"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        assert np.array_equal(joined, getattr(whole, field))
    assert len(np.unique(plan.ids(whole))) <= len(whole)
    assert np.array_equal(np.concatenate([plan.ids(part) for part in parts]), plan.ids(whole))


def test_streams_drawn_together_equal_streams_drawn_alone() -> None:
    windows, slots, names = [11, 500, 7], [3, 20, 7], ["a", "b", "c"]
    streams = np.repeat(np.arange(3), slots)
    numbers = np.concatenate([np.arange(count) for count in slots])
    together = StratifiedSampler(windows, slots, names).draw(1234, streams, numbers)
    alone = [
        StratifiedSampler([count], [each], [name]).draw(1234, np.zeros(each, np.int64), np.arange(each))
        for count, each, name in zip(windows, slots, names, strict=True)
    ]
    assert np.array_equal(together, np.concatenate(alone))


def test_4096_ranks_tile_every_global_batch() -> None:
    random = np.random.default_rng(0)
    steps = random.integers(100, 300, 5000).tolist()
    texts = random.integers(10, 40, 5000).tolist()
    plan = make_plan(dataset_windows(steps, texts, image=276), sequences=4096, length=8192)
    border = int(
        plan.datasets[0].tables[0].count / samples_per_step(plan, Kind.ACTION)
    )  # an epoch ends in it
    for step in (7, border, 10**7 + 1):
        whole = plan.ids(plan.step(step))
        parts = [plan.ids(plan.step(step, *plan.share(rank, 4096))) for rank in range(4096)]
        assert np.array_equal(np.concatenate(parts), whole)
        assert min(map(len, parts)) > 0
        if step < border:
            assert len(np.unique(whole)) == len(whole)  # well within an epoch, so no window twice


def test_mixture_of_data_sets_is_exact_in_every_step() -> None:
    plan = make_plan(dataset_windows([50, 60], weight=0.7), dataset_windows([30], weight=0.3), sequences=8)
    counts = {(plan.step(step).datasets == 0).sum() for step in range(20)}
    total = len(plan.step(0))
    assert len(counts) == 1
    assert abs(counts.pop() - 0.7 * total) < 1
    assert samples_per_step(plan, Kind.ACTION) == samples_per_step(plan, Kind.WORLD) == total / 2


@given(
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=4), world=st.sampled_from([0.5, 1, 3]),
    step=st.integers(0, 10**6), sequences=st.integers(6, 12),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_mixture_is_by_the_largest_remainder_at_each_step(
    weights: list[int], world: float, step: int, sequences: int
) -> None:
    datasets = [dataset_windows([30 + 5 * i, 20], weight=weight) for i, weight in enumerate(weights)]
    plan = make_plan(*datasets, sequences=sequences, length=1000, world=world)
    windows = plan.step(step)
    total = len(windows)
    expected = apportion(total, weights)
    assert np.bincount(windows.datasets, minlength=len(weights)).tolist() == expected
    assert int((windows.kinds == Kind.WORLD).sum()) * (1 + world) == pytest.approx(total * world)


def test_every_data_set_occurs_completely_in_each_of_its_epochs() -> None:
    """At weights of 3 to 1 the small data set passes five times while the large one passes once."""
    plan = make_plan(dataset_windows([30, 42], weight=3), dataset_windows([6], weight=1), sequences=8)
    for number, steps in enumerate(([30, 42], [6])):
        each = int(plan.layout.counts[number, Kind.ACTION])
        windows = [(e, t) for e, length in enumerate(steps) for t in range(length - CHUNK + 1)]
        seen = Counter[tuple[int, int]]()
        for step in range(len(windows)):
            seen.update(pairs(plan.step(step), Kind.ACTION, number))
        assert seen == {window: each for window in windows}


def test_epochs_are_counted_for_each_data_set() -> None:
    plan = make_plan(dataset_windows([50, 60]), sequences=4)
    each = samples_per_step(plan, Kind.ACTION)
    assert plan.epochs(10) == {"test/action": 10 * each / 106, "test/world": 10 * each / 108}


def test_another_seed_gives_another_order() -> None:
    one, other = make_plan(dataset_windows([90, 80])), make_plan(dataset_windows([90, 80]), seed=1)
    assert not np.array_equal(one.ids(one.step(0)), other.ids(other.step(0)))
    assert np.array_equal(one.ids(one.step(3)), make_plan(dataset_windows([90, 80])).ids(one.step(3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": 0}, "0 sequences"),
        ({"length": 30}, r"longest action sample has \d+ tokens, but trainer.sequence_length is 30"),
        ({"world": 1e-5}, "with no sequence empty"),
    ],
)
def test_impossible_plans_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(dataset_windows([9, 30]), **change)


def test_a_data_set_without_a_sample_in_a_step_is_refused() -> None:
    with pytest.raises(InputError, match=r"its weight 0.001 gives it no action sample"):
        make_plan(dataset_windows([9, 30]), dataset_windows([9], weight=0.001))
