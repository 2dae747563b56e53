"""Initial weights: what they are distributed like, and that any part of them is drawn alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from pretrain.model import random_values
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.model.parameters import Shard, initial_values, sharded_dimension
from pretrain.model.random_values import draw, normal, random_bits, uniform
from pretrain.model.transformer import expected_shapes

ROWS, COLUMNS = 500, 1000
MODEL = ModelConfig(
    vocabulary_size=264,
    hidden_size=32,
    ffn_size=72,
    layers=2,
    heads=8,
    dropout=0.0,
    action_head=ActionHeadConfig(time_horizon=3),
)


def values_of(name: str) -> np.ndarray:
    return draw(name, COLUMNS, (0, ROWS), (0, COLUMNS), normal(1.0)).numpy().astype(np.float64)


def test_values_are_normal() -> None:
    values = values_of("0/model.layers.0.mlp.up_proj.weight").ravel()
    count = len(values)
    assert abs(values.mean()) < 4 / math.sqrt(count)
    assert abs(values.std() - 1) < 4 / math.sqrt(2 * count)
    assert abs(stats.skew(values)) < 4 * math.sqrt(6 / count)
    assert abs(stats.kurtosis(values)) < 4 * math.sqrt(24 / count)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    tails = np.array([(np.abs(values) > bound).sum() for bound in (2, 3, 4)])
    expected = count * 2 * stats.norm.sf([2, 3, 4])
    assert (np.abs(tails - expected) < 5 * np.sqrt(expected)).all()


def test_the_inverse_distribution_function_is_close_to_the_exact_one() -> None:
    bits = np.concatenate([np.arange(4096), np.random.default_rng(0).integers(0, 2**32, 100_000)])
    bits = np.append(bits, 2**32 - 1).astype(np.uint32)[None]
    values = np.empty(bits.shape, np.float32)
    normal(1.0)(bits, values, random_values._Scratch(bits.size))
    place = ((bits >> np.uint32(1)) | np.uint32(1)).astype(np.float64)
    exact = stats.norm.isf(place / 2.0**32) * np.where(bits % 2, -1, 1)
    assert np.abs(values - exact).max() < 2e-5
    assert 6.2 < values.max() == -values.min() < 6.3


def test_uniform_values_fill_their_interval() -> None:
    values = draw("name", COLUMNS, (0, ROWS), (0, COLUMNS), uniform(0.5)).numpy().ravel()
    assert -0.5 < values.min() < -0.4999 < 0.4999 < values.max() < 0.5
    assert stats.kstest(values, "uniform", args=(-0.5, 1.0)).pvalue > 1e-3


def test_neighbours_names_and_seeds_are_independent() -> None:
    first = values_of("0/a")
    size = ROWS * COLUMNS
    pairs = {
        "columns": (first[:, :-1], first[:, 1:]),
        "pairs of columns": (first[:, :-2], first[:, 2:]),
        "rows": (first[:-1], first[1:]),
        "names": (first, values_of("0/b")),
        "seeds": (first, values_of("1/a")),
        "layers": (values_of("0/layers.0.x"), values_of("0/layers.1.x")),
        "squares of columns": (first[:, :-1] ** 2 - 1, first[:, 1:] ** 2 - 1),
        "squares of rows": (first[:-1] ** 2 - 1, first[1:] ** 2 - 1),
    }
    for what, (one, other) in pairs.items():
        correlation = (one * other).mean() / (one.std() * other.std())
        assert abs(correlation) < 4.5 / math.sqrt(size), what


def test_every_bit_is_set_half_of_the_time() -> None:
    bits = random_bits("name", COLUMNS, (0, ROWS), (0, COLUMNS)).ravel()
    for place in range(32):
        share = ((bits >> np.uint32(place)) & np.uint32(1)).mean()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(len(bits)), place


@pytest.mark.parametrize("columns", [1, 2, 7, 64, 1001])
@pytest.mark.parametrize("distribution", [normal(0.02), uniform(0.1)])
def test_any_region_is_the_same_as_in_the_whole(
    columns: int, distribution: random_values.Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_values, "_BLOCK", 200)  # several blocks
    rows = 40
    whole = draw("name", columns, (0, rows), (0, columns), distribution)
    random = np.random.default_rng(columns)
    for _ in range(30):
        top, bottom = sorted(random.integers(0, rows + 1, 2).tolist())
        left, right = sorted(random.integers(0, columns + 1, 2).tolist())
        region = draw("name", columns, (top, bottom), (left, right), distribution)
        assert torch.equal(region, whole[top:bottom, left:right])


def test_values_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = draw("name", 4096, (3, 103), (0, 4096), normal(1.0))
        torch.set_num_threads(3)
        assert torch.equal(draw("name", 4096, (3, 103), (0, 4096), normal(1.0)), alone)
    finally:
        torch.set_num_threads(before)


def test_values_stay_those_of_earlier_releases() -> None:
    bits = random_bits("0/model.embed_tokens.weight", 4096, (65_535, 65_536), (4093, 4096))
    assert bits.tolist() == [[528522501, 850109492, 2859353306]]
    values = draw("0/model.embed_tokens.weight", 4096, (65_535, 65_536), (4093, 4096), normal(0.02))
    expected = ["-0x1.f94e560000000p-6", "0x1.a5e0f00000000p-6", "0x1.1b1d6e0000000p-7"]
    assert [value.hex() for value in values[0].tolist()] == expected


@pytest.mark.parametrize(("tensor", "data"), [(1, 3), (2, 2), (4, 5), (8, 7)])
def test_parts_of_all_ranks_make_up_every_parameter(tensor: int, data: int) -> None:
    for name, shape in expected_shapes(MODEL).items():
        dimension = sharded_dimension(name)
        whole = initial_values(name, Shard(shape, dimension), MODEL, 3).view(shape)
        ranks = 1 if dimension is None else tensor
        shards = []
        for rank in range(ranks):
            sides = tuple(side // ranks if d == dimension else side for d, side in enumerate(shape))
            shard = Shard(sides, dimension, rank, ranks)
            share = -(-shard.count // data)
            bounds = itertools.pairwise(range(0, share * (data + 1), share))
            parts = [initial_values(name, shard, MODEL, 3, start, stop) for start, stop in bounds]
            shards.append(torch.cat(parts).view(sides))
        assert torch.equal(torch.cat(shards, dimension or 0), whole), name


def test_deviations_are_those_of_the_kind_of_parameter() -> None:
    wide = replace(MODEL, hidden_size=512, ffn_size=640, vocabulary_size=1024)
    deviations = {
        name: (values.mean().item(), values.std().item())
        for name, shape in expected_shapes(wide).items()
        for values in [initial_values(name, Shard(shape, sharded_dimension(name)), wide, 0)]
    }
    back = 0.02 / math.sqrt(2 * wide.layers)
    head = "action_head.transformer_encoder.layers.0."
    expected = {
        "model.embed_tokens.weight": (0, 0.02),
        "lm_head.weight": (0, 0.02),
        "model.layers.1.self_attn.q_proj.weight": (0, 0.02),
        "model.layers.1.self_attn.o_proj.weight": (0, back),
        "model.layers.0.mlp.down_proj.weight": (0, back),
        "model.layers.0.self_attn.q_norm.weight": (1, 0),
        "model.layers.0.self_attn.q_norm.bias": (0, 0),
        "model.norm.weight": (1, 0),
        "action_head.action_token_embeddings.weight": (0, 0.02),
        f"{head}self_attn.in_proj_weight": (0, math.sqrt(6 / (4 * 128)) / math.sqrt(3)),
        f"{head}linear1.weight": (0, 1 / math.sqrt(128) / math.sqrt(3)),
        f"{head}linear1.bias": (0, 0),
        f"{head}norm1.weight": (1, 0),
    }
    for name, (mean, deviation) in expected.items():
        actual = deviations[name]
        assert abs(actual[0] - mean) < 0.02 * deviation + 1e-9, name
        assert abs(actual[1] - deviation) < 0.02 * deviation + 1e-9, name


def test_only_the_rows_of_a_part_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    original = random_values.random_bits

    def counting(*arguments: object) -> random_values.Bits:
        bits = original(*arguments)  # type: ignore[arg-type]
        drawn.append(bits.size)
        return bits

    monkeypatch.setattr(random_values, "random_bits", counting)
    width, ranks = 4096, 64
    shard = Shard((11_008, width), 0)
    share = shard.count // ranks
    part = initial_values("model.layers.0.mlp.up_proj.weight", shard, MODEL, 0, 7 * share, 8 * share)
    assert len(part) == share <= sum(drawn) <= share + 2 * width
