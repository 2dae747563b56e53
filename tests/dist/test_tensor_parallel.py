"""The network sharded over tensor-parallel ranks gives the logits of Hugging Face's Chameleon."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer
from pretrain.parallel.mesh import Mesh
from tests.support.chameleon import TINY, chameleon, chameleon_logits, load_share, our_logits, random_tokens
from tests.support.ranks import run_ranks

LARGE = replace(TINY, heads=8, key_value_heads=2, swin_norm=True)


def gathered_logits(config: ModelConfig, weights: dict[str, Tensor]) -> np.ndarray:
    """Logits [2, S, V] of the network sharded over all ranks."""
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.tensor_parallel import TensorParallelFactory

    dist.init_process_group("gloo")
    groups = ProcessGroups.create(Mesh(dist.get_world_size(), 1))
    model = Transformer(config, TensorParallelFactory(groups)).eval()
    load_share(model, weights, groups.tensor_rank, groups.mesh.tensor)
    mine = our_logits(model, random_tokens(config)).contiguous()
    shares = [torch.empty_like(mine) for _ in range(groups.mesh.tensor)]
    dist.all_gather(shares, mine, group=groups.tensor)
    return torch.cat(shares, dim=-1).numpy()


@pytest.mark.parametrize(
    ("config", "tensor"), [(TINY, 2), (TINY, 4), (LARGE, 2)], ids=["7b-2", "7b-4", "34b-2"]
)
def test_logits_equal_hugging_face_chameleon(config: ModelConfig, tensor: int) -> None:
    theirs = chameleon(config)
    expected = chameleon_logits(theirs, random_tokens(config))
    for actual in run_ranks(gathered_logits, tensor, config, dict(theirs.state_dict())):
        torch.testing.assert_close(torch.from_numpy(actual), expected, atol=1e-5, rtol=0)
