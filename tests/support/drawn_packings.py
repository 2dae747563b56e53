"""Hypothesis strategies of packed sequences; apart, since `tests/gpu` does without hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.packings import Packing, action_sample, packing, world_sample


def samples() -> st.SearchStrategy[list[int]]:
    """Samples of all kinds, and lists of block ids that no real sample has."""
    small = st.integers(0, 9)
    return st.one_of(
        st.builds(
            action_sample, st.integers(0, 40), st.integers(1, 5), st.integers(1, 9), small, st.integers(0, 2)
        ),
        st.builds(world_sample, st.integers(1, 20), st.integers(1, 9)),
        st.builds(lambda n: [0] * n, st.integers(1, 30)),
        st.lists(st.integers(-2, 3), min_size=1, max_size=20),
        st.lists(st.integers(1, 2), min_size=1, max_size=5).map(
            lambda ids: [i for i in ids for _ in range(12)]
        ),
    )


def packings() -> st.SearchStrategy[Packing]:
    """One to three rows of samples, with padding or the last sample cut."""
    return st.builds(
        packing,
        st.lists(st.lists(samples(), max_size=5), min_size=1, max_size=3),
        st.integers(1, 100),
    )
