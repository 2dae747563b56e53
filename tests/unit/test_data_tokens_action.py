"""Action tokens against the published formulas, written again in plain Python."""

from __future__ import annotations

import bisect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from data.tokens.action import (
    ACTION_MAX,
    ACTION_MIN,
    NAMED_RANGES,
    ActionRanges,
    decode,
    encode,
    quantise,
    restore,
)

EDGES = list(np.linspace(-1, 1, 256))


def reference_id(value: float, low: float, high: float) -> int:
    normalised = min(max(2 * (value - low) / (high - low + 1e-8) - 1, -1.0), 1.0)
    return bisect.bisect_right(EDGES, normalised) + 10_005


def reference_value(token: int, low: float, high: float) -> float:
    i = min(max(token - 10_006, 0), 254)
    center = (EDGES[i] + EDGES[i + 1]) / 2
    return (center + 1) / 2 * (high - low + 1e-8) + low


@given(st.lists(st.tuples(*[st.floats(-3, 3) for _ in range(7)]), min_size=1, max_size=20))
def test_ids_and_values_equal_the_published_formulas(rows: list[tuple[float, ...]]) -> None:
    ids = encode(rows)
    limits = list(zip(ACTION_MIN, ACTION_MAX, strict=True))
    expected = [[reference_id(v, *limits[d]) for d, v in enumerate(row)] for row in rows]
    assert ids.dtype == np.int64
    assert ids.tolist() == expected
    values = decode(ids)
    assert values.dtype == np.float64
    assert values.tolist() == [
        [reference_value(t, *limits[d]) for d, t in enumerate(row)] for row in expected
    ]


def test_limits_take_the_first_and_the_last_bins() -> None:
    assert encode([ACTION_MIN]).tolist() == [[10_006] * 7]
    beyond = np.array([ACTION_MAX]) + 1
    assert encode(beyond).tolist() == [[10_261] * 7]
    assert np.array_equal(decode(np.full((1, 7), 10_261)), decode(np.full((1, 7), 10_260)))


def test_bins_at_the_edges_equal_digitize() -> None:
    edges = np.linspace(-1.0, 1.0, 256)
    near = np.concatenate([edges, np.nextafter(edges, -2), np.nextafter(edges, 2), edges + 1e-6])
    low, high = np.float64(-0.75), np.float64(0.5)
    values = (near + 1.0) / 2.0 * (high - low + 1e-8) + low
    normalised = np.clip(2.0 * (values - low) / (high - low + 1e-8) - 1.0, -1.0, 1.0)
    found = quantise(values[:, None], (float(low),), (float(high),))[:, 0]
    assert np.array_equal(found, np.digitize(normalised, edges) - 1)
    assert set(found.tolist()) == set(range(256))


def test_a_decoded_action_encodes_to_the_same_id() -> None:
    ids = np.repeat(np.arange(10_006, 10_261)[:, None], 7, axis=1)
    assert np.array_equal(encode(decode(ids)), ids)


def test_other_ranges_are_used_both_ways() -> None:
    ranges = ActionRanges(minimum=(0.0,) * 7, maximum=(10.0,) * 7)
    ids = encode(np.full((1, 7), 5.0), ranges)
    assert set(ids.ravel()) == {10_006 + 127}
    assert decode(ids, ranges) == pytest.approx(np.full((1, 7), 5.0), abs=10 / 255)


def test_infinite_values_are_clipped_as_in_the_formula() -> None:
    assert encode([[math.inf, -math.inf, 0, 0, 0, 0, 0]])[0, :2].tolist() == [10_261, 10_006]


def test_nan_is_refused() -> None:
    actions = np.zeros((3, 7))
    actions[1, 4] = math.nan
    with pytest.raises(InputError, match=r"action 1 has .* in dimension 4"):
        encode(actions)


@pytest.mark.parametrize("shape", [(3, 6), (7,), (2, 3, 7)])
def test_wrong_width_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected \\[N, 7\\]"):
        encode(np.zeros(shape))
    with pytest.raises(InputError, match="expected \\[N, 7\\]"):
        decode(np.zeros(shape, np.int64))


def test_float_ids_and_invalid_ranges_are_refused() -> None:
    with pytest.raises(InputError, match="expected integers"):
        decode(np.zeros((1, 7)))
    with pytest.raises(InputError, match="at most as large"):
        ActionRanges(minimum=(1.0,) * 7, maximum=(0.0,) * 7)
    with pytest.raises(InputError, match="expected as many minima as maxima"):
        ActionRanges(minimum=(1.0,) * 6)


def test_an_action_on_the_edge_of_a_bin_keeps_its_bin_in_float64_only() -> None:
    """-0.225 is reached in LIBERO; float32 rounds it to the other side of the edge."""
    action = np.full((1, 7), -0.225)
    assert encode(action)[0, 4:6].tolist() == [10_056, 10_056]
    assert encode(action.astype(np.float32).astype(np.float64))[0, 4:6].tolist() == [10_057, 10_057]


@pytest.mark.parametrize("ranges", NAMED_RANGES.values())
def test_restored_actions_encode_to_every_id(ranges: ActionRanges) -> None:
    ids = np.repeat(np.arange(10_006, 10_262)[:, None], 7, axis=1)
    assert np.array_equal(encode(restore(ids, ranges), ranges), ids)
    assert np.array_equal(restore(ids[:-1], ranges), decode(ids[:-1], ranges))
