"""Compiled functions on parameters that ZeRO-3 partitions."""

from __future__ import annotations

import numpy as np

from pretrain.parallel.mesh import Mesh
from tests.dist.test_recompute import train
from tests.support.compiling import needs_compiler
from tests.support.engine_case import Curve
from tests.support.ranks import run_ranks


def train_and_count(model: dict[str, object]) -> tuple[Curve, int]:
    """Losses and gradient norms, and how many graphs were compiled; dropout as in eager mode."""
    from torch._dynamo.utils import counters
    from torch._inductor import config

    config.fallback_random = True
    curve, _ = train(Mesh(1, 2), False, model)
    return curve, counters["stats"]["unique_graphs"]


@needs_compiler
def test_compiled_training_is_the_same_with_one_compilation_for_all_layers() -> None:
    model = {"dropout": 0.1, "layers": 4, "recompute": "selective"}
    eager = run_ranks(train_and_count, 2, {**model, "compile": "off"})
    compiled = run_ranks(train_and_count, 2, {**model, "compile": "on"})
    for (expected, none), (actual, graphs) in zip(eager, compiled, strict=True):
        np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=1e-5)
        assert none == 0
        assert 3 <= graphs <= 8
