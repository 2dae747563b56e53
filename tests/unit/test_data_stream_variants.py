"""The variant of the frames that a window shows: drawn without state, evenly, and the order stays."""

from __future__ import annotations

from itertools import chain

import numpy as np

from data.config import MixtureConfig
from data.stream.order.plan import DataPlan, Kind, PlannedWindows
from tests.unit.test_data_stream_plan import dataset_windows


def plan(variants: int, seed: int = 0, fingerprint: str = "abc") -> DataPlan:
    datasets = [dataset_windows([40, 31, 22]), dataset_windows([40, 31, 22])]
    return DataPlan(datasets, MixtureConfig(), 12, 400, seed, fingerprint, variants)


def drawn(planned: PlannedWindows) -> list[int]:
    return planned.variants.tolist()


def test_draws_never_change() -> None:
    """A change of these numbers would silently change every run with variants that is resumed."""
    assert drawn(plan(3).step(5, 0, 2)) == [3, 2, 1, 3, 0, 1, 3, 1, 2, 3, 0, 2, 3, 0, 3, 0]


def test_the_order_is_the_same_with_and_without_variants() -> None:
    for step in (0, 3, 1000):
        without, several = plan(0).step(step), plan(4).step(step)
        assert not without.variants.any()
        for name in ("sequences", "kinds", "datasets", "episodes", "times"):
            assert np.array_equal(getattr(without, name), getattr(several, name))


def test_a_share_of_a_step_draws_what_the_whole_step_draws() -> None:
    whole = plan(2)
    for step in (0, 17):
        shares = [drawn(whole.step(step, *whole.share(rank, 4))) for rank in range(4)]
        assert list(chain(*shares)) == drawn(plan(2).step(step))


def test_variants_are_drawn_evenly_and_anew_in_each_epoch() -> None:
    """Each window of each data set and kind over 300 epochs."""
    found = plan(2)
    draws: dict[tuple[int, ...], list[int]] = {}
    windows = len(found.step(0))
    steps = 300 * sum(table.count for dataset in found.datasets for table in dataset.tables) // windows
    for step in range(steps):
        w = found.step(step)
        for *window, variant in zip(w.datasets, w.kinds, w.episodes, w.times, w.variants, strict=True):
            draws.setdefault(tuple(map(int, window)), []).append(int(variant))
    shares = np.array([np.bincount(of, minlength=3) / len(of) for of in draws.values()])
    assert shares.shape[1] == 3
    assert np.abs(shares.mean(axis=0) - 1 / 3).max() < 0.005
    assert np.abs(shares - 1 / 3).max() < 0.14  # five standard deviations of 300 draws
    again = np.mean([np.mean(np.diff(of) == 0) for of in draws.values()])
    assert abs(again - 1 / 3) < 0.01  # the last epoch's draw does not matter


def test_seeds_data_data_sets_and_kinds_draw_apart() -> None:
    def by_window(plan: DataPlan, dataset: int, kind: Kind) -> np.ndarray:
        """The draw of the first epoch of each window, in one order."""
        found: dict[tuple[int, int], int] = {}
        for step in range(60):
            w = plan.step(step)
            for i in np.flatnonzero((w.datasets == dataset) & (w.kinds == kind)):
                found.setdefault((int(w.episodes[i]), int(w.times[i])), int(w.variants[i]))
        return np.array([found[key] for key in sorted(found) if key[1] < 20])

    one = by_window(plan(9), 0, Kind.ACTION)
    for other in (
        by_window(plan(9, seed=1), 0, Kind.ACTION),
        by_window(plan(9, fingerprint="abd"), 0, Kind.ACTION),
        by_window(plan(9), 1, Kind.ACTION),
        by_window(plan(9), 0, Kind.WORLD),
    ):
        assert len(one) == len(other) == 60
        assert np.mean(one == other) < 0.3
