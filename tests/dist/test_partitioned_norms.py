"""Norms that ZeRO-3 partitions as it does matrices are gathered where they are used.

The heads' norms are used by the attention around them. As shipped ZeRO-3 leaves norms whole.
"""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.parallel.mesh import Mesh
from tests.dist.test_recompute import train
from tests.support.engine_case import Curve
from tests.support.ranks import run_ranks


def train_each(models: list[dict[str, Any]], mesh: Mesh, sequence_parallel: bool) -> list[list[Curve]]:
    """Curves with whole and with partitioned norms."""
    from pretrain.parallel import zero

    settings, curves = zero.deepspeed_settings, []
    for threshold in (None, 0):

        def changed(*arguments: Any, threshold: int | None = threshold) -> dict[str, Any]:
            values = settings(*arguments)
            if threshold is not None:
                values["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
            return values

        zero.deepspeed_settings = changed
        curves.append([train(mesh, sequence_parallel, model)[0] for model in models])
    return curves


@pytest.mark.parametrize(("mesh", "sequence_parallel"), [(Mesh(1, 2), False), (Mesh(2, 2), True)])
def test_partitioned_norms_train_alike(mesh: Mesh, sequence_parallel: bool) -> None:
    policies = ("none", "selective", "full")
    models = [{"dropout": 0.1, "recompute": policy} for policy in policies]
    models.append({"swin_norm": True, "key_value_heads": 2, "recompute": "selective"})
    for whole, partitioned in run_ranks(train_each, mesh.size, models, mesh, sequence_parallel):
        assert partitioned == whole
