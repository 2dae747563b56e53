"""The local order: every window once in an epoch, for any ranks, from few episodes at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import MixtureConfig
from data.stream.order.layout import DatasetWindows
from data.stream.order.local_sampler import LocalSampler, LocalStream
from data.stream.order.plan import DataPlan, Kind, PlannedWindows
from data.stream.order.visiting_order import spread, visiting_times
from data.stream.samples import SampleForm
from data.stream.windows.episode_line import EpisodeLine
from data.stream.windows.window_table import WindowTable

CHUNK, HISTORY = 3, 2
MANY = st.lists(st.integers(0, 12), min_size=1, max_size=40)
SKEWED = st.lists(st.integers(3, 9), max_size=30).map(lambda short: [*short, 200])
EQUAL = st.builds(lambda episodes, steps: [steps] * episodes, st.integers(1, 60), st.integers(4, 12))
STEPS = st.one_of(MANY, SKEWED, EQUAL).filter(lambda steps: max(steps) >= CHUNK)


def lines(
    steps: list[int], texts: list[int] | None = None, weight: float = 1.0, chunk: int = CHUNK
) -> DatasetWindows:
    form = SampleForm(10, history=HISTORY, chunk=chunk)
    lengths, words = np.array(steps, np.int32), np.array(texts or [5] * len(steps), np.int32)
    return DatasetWindows(
        "test",
        (
            EpisodeLine(lengths, chunk - 1, HISTORY, words, form.action_length),
            EpisodeLine(lengths, 1, 1, np.full(len(steps), 7, np.int32), lambda w, _: form.world_length(w)),
        ),
        weight,
    )


def make_plan(
    *datasets: DatasetWindows,
    seed: int = 0,
    sequences: int = 4,
    length: int = 400,
    action: float = 1.0,
    world: float = 1.0,
    pool: int = 4,
) -> DataPlan:
    mixture = MixtureConfig(action, world)
    return DataPlan(datasets, mixture, sequences, length, seed, fingerprint="abc", pool_episodes=pool)


def pairs(windows: PlannedWindows, kind: Kind, dataset: int = 0) -> list[tuple[int, int]]:
    of = (windows.kinds == kind) & (windows.datasets == dataset)
    return list(zip(windows.episodes[of].tolist(), windows.times[of].tolist(), strict=True))


def all_windows(steps: list[int], kind: Kind, chunk: int = CHUNK) -> list[tuple[int, int]]:
    needed = chunk if kind == Kind.ACTION else 2
    return [(e, t) for e, length in enumerate(steps) for t in range(length - needed + 1)]


def stream_of(plan: DataPlan, kind: Kind, dataset: int = 0) -> LocalStream:
    assert isinstance(plan._sampler, LocalSampler)
    stream = plan._sampler.streams[2 * dataset + kind]
    assert stream is not None
    return stream


def epoch_of(stream: LocalStream, epoch: int, slot: int) -> np.ndarray:
    """All windows that a slot draws in an epoch, in order, int64 [windows]."""
    sampler, slots = LocalSampler([stream]), np.array([slot])
    first = epoch * stream.windows // stream.slots  # a step that the epoch may begin in
    steps = range(first, first + stream.windows // stream.slots + 2)
    steps = [step for step in steps if stream.epochs_of(step, slots)[0] == epoch]
    return np.concatenate([sampler.draw(step, np.zeros(1, np.int64), slots) for step in steps])


@given(steps=STEPS, texts=st.lists(st.integers(1, 9), min_size=60, max_size=60), history=st.integers(1, 4))
@settings(deadline=None)
def test_every_window_is_numbered_once_episode_by_episode(
    steps: list[int], texts: list[int], history: int
) -> None:
    form = SampleForm(10, history=history, chunk=CHUNK)
    words = np.array(texts[: len(steps)], np.int32)
    args = np.array(steps, np.int32), CHUNK - 1, history, words, form.action_length
    line, table = EpisodeLine(*args), WindowTable(*args)
    numbers = np.arange(line.count)
    episodes, times = line.locate(numbers)
    found = list(zip(episodes.tolist(), times.tolist(), strict=True))
    assert sorted(found) == all_windows(steps, Kind.ACTION)
    assert np.count_nonzero(np.diff(episodes)) + 1 == len(set(episodes.tolist()))  # each episode in one run
    true = [form.action_length(int(words[e]), min(t + 1, history)) for e, t in found]
    longest = {
        e: max(length for (other, _), length in zip(found, true, strict=True) if other == e) for e, _ in found
    }
    assert (
        line.lengths(numbers).tolist()
        == [longest[e] for e, _ in found]
        == sorted(longest[e] for e, _ in found)
    )
    assert line.longest == max(true)
    assert line.mean_length == pytest.approx(np.mean(true))
    assert line.mean_length == pytest.approx(table.mean_length)
    assert np.array_equal(line.ids(episodes, times), table.ids(episodes, times))


@given(
    steps=STEPS,
    seed=st.integers(0, 5),
    sequences=st.integers(1, 6),
    mixture=st.sampled_from([(1, 1), (1, 0), (0, 1), (2, 1), (1, 2)]),
    pool=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_every_window_occurs_once_in_an_epoch(
    steps: list[int], seed: int, sequences: int, mixture: tuple[int, int], pool: int
) -> None:
    action, world = mixture
    plan = make_plan(lines(steps), seed=seed, sequences=sequences, action=action, world=world, pool=pool)
    counts = plan.layout.counts[0].tolist()
    assert counts[0] * world == counts[1] * action
    assert sum(counts)
    for kind in Kind:
        expected = all_windows(steps, kind)
        # Within a step the order is that of sequences, so whole steps are compared: epochs end in one.
        seen = Counter[tuple[int, int]]()
        for step in range(len(expected)):  # steps after which every window has occurred `each` times
            seen.update(pairs(plan.step(step), kind))
        assert seen == {window: counts[kind] for window in expected if counts[kind]}


@given(count=st.integers(1, 60), slots=st.integers(1, 70), pool=st.integers(1, 5))
@settings(deadline=None)
def test_an_epoch_ends_where_all_windows_have_occurred_even_within_a_step(
    count: int, slots: int, pool: int
) -> None:
    line = lines([3 + count // 3, 3, 3 + count - count // 3 - 1]).tables[0]
    assert isinstance(line, EpisodeLine)
    plan = make_plan(lines([5]))
    pieces = stream_of(plan, Kind.ACTION)._pieces
    pieces = type(pieces)(np.array([0, 1, 2, 3], np.int32), np.array([0, 1, 2], np.int32))
    stream = LocalStream(line, pieces, np.arange(slots), pool, "k", "v")
    all_slots = np.arange(slots)
    by_place, sampler = np.argsort(stream._labels), LocalSampler([stream])
    drawn = [
        sampler.draw(step, np.zeros_like(all_slots), all_slots)[by_place]
        for step in range(-(-3 * line.count // slots))
    ]
    joined = np.concatenate(drawn)
    for epoch in range(3):
        assert sorted(joined[epoch * line.count : (epoch + 1) * line.count]) == list(range(line.count))


@given(step=st.integers(0, 10**9), ranks=st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(deadline=None)
def test_ranks_tile_the_global_batch_from_any_step(step: int, ranks: int) -> None:
    def made() -> DataPlan:
        datasets = lines([9, 30, 14] * 9), lines([40, 8] * 5, weight=0.5, chunk=5)
        return make_plan(*datasets, sequences=12, pool=3)

    one, other = made(), made()
    whole = one.step(step)
    other.step(max(step - 7, 0), *other.share(0, ranks))  # prepared out of order, and in parts
    other.step(step + 1)
    parts = [other.step(step, *other.share(rank, ranks)) for rank in reversed(range(ranks))][::-1]
    for field in ("sequences", "kinds", "datasets", "episodes", "times"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        assert np.array_equal(joined, getattr(whole, field))
    assert np.array_equal(np.concatenate([one.ids(part) for part in parts]), one.ids(whole))


@given(
    steps=STEPS,
    texts=st.lists(st.integers(1, 60), min_size=60, max_size=60),
    step=st.integers(0, 10**6),
    sequences=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_no_sequence_is_overfull(steps: list[int], texts: list[int], step: int, sequences: int) -> None:
    form = SampleForm(10, history=HISTORY, chunk=CHUNK)
    plan = make_plan(lines(steps, texts[: len(steps)]), sequences=sequences, length=300)
    planned = plan.step(step)
    frames = np.minimum(planned.times + 1, HISTORY)
    tokens = [
        form.world_length(7) if kind == Kind.WORLD else form.action_length(texts[episode], frame)
        for kind, episode, frame in zip(planned.kinds, planned.episodes, frames.tolist(), strict=True)
    ]
    assert np.bincount(planned.sequences, weights=tokens).max() <= 300


def test_mixture_of_data_sets_is_exact_in_every_step() -> None:
    plan = make_plan(lines([50, 60], weight=0.7), lines([30], weight=0.3, chunk=5), sequences=8)
    counts = {tuple(np.bincount(2 * (w := plan.step(s)).datasets + w.kinds).tolist()) for s in range(20)}
    assert counts == {tuple(plan.layout.counts.reshape(-1).tolist())}
    for number, (steps, chunk) in enumerate((([50, 60], CHUNK), ([30], 5))):
        for kind in Kind:
            expected, each = all_windows(steps, kind, chunk), int(plan.layout.counts[number, kind])
            seen = Counter[tuple[int, int]]()
            for step in range(len(expected)):
                seen.update(pairs(plan.step(step), kind, number))
            assert seen == {window: each for window in expected}


@given(
    steps=STEPS,
    epoch=st.integers(0, 9),
    sequences=st.integers(1, 3),
    pool=st.integers(1, 9),
    kind=st.sampled_from(Kind),
)
@settings(max_examples=25, deadline=None)
def test_a_slot_draws_from_a_bounded_number_of_episodes_at_a_time(
    steps: list[int], epoch: int, sequences: int, pool: int, kind: Kind
) -> None:
    """The windows of a slot in an epoch, pool by pool: no episode is in two of them."""
    plan = make_plan(lines(steps * 3), sequences=sequences, length=150, pool=pool)
    stream, (blocks,) = stream_of(plan, kind), plan.blocks
    assert blocks is not None
    sizes = stream._new_epoch(epoch).sizes
    assert sizes.sum() == stream.windows
    for slot in np.flatnonzero(sizes).tolist():  # there may be more slots than windows
        drawn = epoch_of(stream, epoch, slot)
        begin = int(stream._new_epoch(epoch).begins[slot])
        assert sorted(drawn) == list(range(begin, begin + int(sizes[slot])))
        episodes = plan.datasets[0].tables[kind].locate(drawn)[0]
        (pools,) = stream.pools(epoch, np.array([slot]))
        sets = [set(part.tolist()) for part in np.split(episodes, np.cumsum(pools)[:-1])]
        assert sum(map(len, sets)) == len(set(episodes.tolist()))
        if np.ptp(stream._line.places(drawn)) < pool:  # also counting episodes without windows
            assert len(sets) == 1
        assert max(map(len, sets)) <= 1.25 * pool + blocks.size


class FirstEpoch:
    """What happens to each episode in the first epoch of both kinds of a plan of one data set."""

    def __init__(self, plan: DataPlan) -> None:
        counts = zip(plan.datasets[0].tables, plan.layout.counts[0].tolist(), strict=True)
        steps = [-(-table.count // slots) for table, slots in counts]
        parts = [plan.step(step) for step in range(max(steps))]
        epochs = [plan._sampler.epochs_of(s, plan._streams_of, plan._slots) for s in range(max(steps))]
        first = np.concatenate(epochs) == 0
        self.at = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[first]
        self.sequences, self.kinds, self.episodes = (
            np.concatenate([getattr(part, field) for part in parts])[first]
            for field in ("sequences", "kinds", "episodes")
        )
        self.steps = min(steps)

    def pairs(self, each: int) -> int:
        """Number of (rank, episode) pairs where a rank has `each` sequences."""
        return len(np.unique(self.sequences // each << 32 | self.episodes))

    def span(self, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
        """First and last step of each episode."""
        which = self.kinds == kind
        first = np.full(self.episodes.max() + 1, np.iinfo(np.int64).max)
        last = np.full_like(first, -1)
        np.minimum.at(first, self.episodes[which], self.at[which])
        np.maximum.at(last, self.episodes[which], self.at[which])
        return first, last


def test_an_episode_is_read_by_about_one_rank_in_one_part_of_the_epoch() -> None:
    """66 episodes a place, 11 sequences a rank of 16."""
    random, episodes, pool = np.random.default_rng(0), 48_000, 8
    steps, texts = random.integers(5, 12, episodes).tolist(), random.integers(3, 9, episodes).tolist()
    plan = make_plan(lines(steps, texts), sequences=176, length=400, pool=pool)
    each_place = episodes / plan.layout.counts.max()
    assert 64 < each_place < 70
    assert plan.blocks[0] is not None
    assert plan.blocks[0].size == 2
    epoch = FirstEpoch(plan)
    for ranks in (1, 4, 16):
        assert epoch.pairs(176 // ranks) <= 1.1 * episodes
    part = (1.25 * pool + 2) / each_place * epoch.steps  # that a pool of episodes of mean length may last
    actions, worlds = epoch.span(Kind.ACTION), epoch.span(Kind.WORLD)
    assert (actions[1] - actions[0]).max() < 1.5 * part < epoch.steps / 3
    assert (worlds[1] - worlds[0]).max() < 1.5 * part
    assert np.abs(actions[0] - worlds[0]).max() < 2 * part
    spread_out = np.abs(actions[0] - epoch.steps / 2).mean()
    assert spread_out == pytest.approx(epoch.steps / 4, rel=0.1)  # evenly over the epoch


def test_a_slot_keeps_its_episodes_from_epoch_to_epoch() -> None:
    plan = make_plan(lines([7, 9, 11] * 3000), sequences=37, length=400)
    for kind in Kind:
        stream = stream_of(plan, kind)
        all_slots = np.arange(stream.slots)
        begins = np.array([stream._epoch(epoch, all_slots).begins for epoch in range(20)])
        assert len(np.unique(begins, axis=0)) > 1  # else N is divisible, and nothing is tested
        assert np.ptp(begins, axis=0).max() <= 6  # windows


def test_places_do_not_change_pools_together() -> None:
    plan = make_plan(lines([9] * 9000), sequences=8, length=400, pool=32)
    stream = stream_of(plan, Kind.ACTION)
    first = np.array([pools[0] for pools in stream.pools(3, np.arange(stream.slots))])
    typical = np.median([pools[1] for pools in stream.pools(3, np.arange(stream.slots))])
    assert first.min() < 0.5 * typical < 0.9 * typical < first.max()
    assert len(np.unique(first)) > 4  # a pool has four blocks
    few = stream_of(make_plan(lines([9] * 2200), sequences=8, length=400, pool=32), Kind.ACTION)
    sizes = [pools for epoch in range(9) for pools in few.pools(epoch, np.arange(few.slots))]
    assert min(map(min, sizes)) > 0.15 * np.median(list(map(max, sizes)))  # none is too small to be random


def test_another_seed_or_epoch_gives_another_order() -> None:
    plan, other = make_plan(lines([9] * 400)), make_plan(lines([9] * 400), seed=1)
    assert not np.array_equal(plan.ids(plan.step(0)), other.ids(other.step(0)))
    stream, line = stream_of(plan, Kind.WORLD), plan.datasets[0].tables[1]
    episodes = [line.locate(epoch_of(stream, epoch, 0))[0].tolist() for epoch in (0, 1)]
    assert episodes[0] != episodes[1]
    assert list(dict.fromkeys(episodes[0])) != list(dict.fromkeys(episodes[1]))


def test_the_local_order_never_changes() -> None:
    """A change of these numbers would silently reorder every run that is resumed."""
    assert visiting_times(np.arange(4), "fixed").tolist() == [2727853271, 2030969873, 4076342910, 56818816]
    plan = make_plan(lines([9, 12, 5, 7, 30] * 9), lines([8] * 20, weight=0.5), pool=3)
    assert plan.ids(plan.step(5))[:9].tolist() == [12, 327, 1011, 503, 836, 1125, 1211, 161, 191]


@given(begin=st.integers(0, 10**6), power=st.integers(0, 10), name=st.text(max_size=5))
def test_any_aligned_run_of_blocks_is_visited_evenly_over_the_time(begin: int, power: int, name: str) -> None:
    blocks = np.arange(1 << power) + (begin << power)
    times = visiting_times(blocks, name)
    assert sorted((times >> np.uint32(32 - power)).tolist() if power else [0]) == list(range(1 << power))


def test_blocks_are_visited_in_a_random_order() -> None:
    """Of many orders: each block at any time, and neighbours independent but for their different halves."""
    times = (
        np.array([visiting_times(np.array([2, 3, 1000, 77_777]), f"order {i}") for i in range(4000)]) / 2**32
    )
    for column in times.T:
        assert np.histogram(column, 10, (0, 1))[0] == pytest.approx(400, abs=100)
    quarters = np.floor(times[:, :2] * 4).astype(int)
    table = np.zeros((4, 4), int)
    np.add.at(table, tuple(quarters.T), 1)
    assert (table[:2, :2] == 0).all()
    assert (table[2:, 2:] == 0).all()
    assert table[:2, 2:] == pytest.approx(500, abs=120)
    assert table[2:, :2] == pytest.approx(500, abs=120)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_labels_are_spread_evenly(count: int) -> None:
    labels = spread(count)
    assert sorted(labels.tolist()) == list(range(count))
    for size in range(0, count, max(count // 9, 1)):
        for first in range(0, count, max(count // 7, 1)):
            before = np.cumsum((labels - first) % count < size)
            assert np.abs(before - size * np.arange(1, count + 1) / count).max() < 4


def test_a_line_of_samples_of_several_lengths_is_not_reordered() -> None:
    line = lines([9, 9, 9], [5, 6, 7]).tables[0]
    assert isinstance(line, EpisodeLine)
    with pytest.raises(ValueError, match="several lengths"):
        line.along(np.array([2, 1, 0], np.int32))
