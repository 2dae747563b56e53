"""The network's layers shared out over tensor-parallel ranks, on megatron-core."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn

from pretrain.model.factory import LayerFactory
from pretrain.parallel.groups import ProcessGroups


class TensorParallelFactory(LayerFactory):
    """Makes megatron's column-, row- and vocabulary-parallel layers.

    Every sharded parameter carries `tensor_model_parallel` and `partition_dim`: without them gradient
    norms (and so clipping) come out wrong, without an error.
    """

    def __init__(self, groups: ProcessGroups) -> None:
        if groups.tensor is None:
            raise ValueError("no tensor-parallel group: use the plain LayerFactory")
        self._group: dist.ProcessGroup = groups.tensor
        self.size = groups.mesh.tensor
        self.rank = groups.tensor_rank
        self._config = ModelParallelConfig(
            tensor_model_parallel_size=self.size,
            use_cpu_initialization=not torch.cuda.is_available(),
            perform_initialization=False,  # weights are drawn by name afterwards
            params_dtype=torch.float32,
        )

    def embedding(self, rows: int, width: int) -> nn.Module:
        """See `LayerFactory.embedding`."""
        return _mark(VocabParallelEmbedding(rows, width, init_method=_keep, config=self._config), 0)

    def column(self, inputs: int, outputs: int) -> nn.Module:
        """See `LayerFactory.column`."""
        layer = _Column(
            inputs, outputs, config=self._config, init_method=_keep, bias=False, gather_output=False
        )
        return _mark(layer, 0)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """See `LayerFactory.row`."""
        layer = _Row(
            inputs,
            outputs,
            config=self._config,
            init_method=_keep,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
        )
        return _mark(layer, 1)

    def sharded_parameter(self, values: Tensor) -> nn.Parameter:
        """See `LayerFactory.sharded_parameter`."""
        parameter = nn.Parameter(values)
        set_tensor_model_parallel_attributes(parameter, True, 0, 1)
        return parameter

    def copy_to_ranks(self, values: Tensor) -> Tensor:
        """See `LayerFactory.copy_to_ranks`."""
        return copy_to_tensor_model_parallel_region(values)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """See `LayerFactory.sum_over_ranks`."""
        dist.all_reduce(values, group=self._group)
        return values

    def max_over_ranks(self, values: Tensor) -> Tensor:
        """See `LayerFactory.max_over_ranks`."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        return values


class _Column(ColumnParallelLinear):
    def forward(self, input_: Tensor) -> Any:
        return super().forward(input_)[0]


class _Row(RowParallelLinear):
    def forward(self, input_: Tensor) -> Any:
        return super().forward(input_)[0]


def _mark(layer: Any, dimension: int) -> nn.Module:
    """Say along which dimension the weight is shared out (megatron does so only where it initialises)."""
    if not getattr(layer.weight, "tensor_model_parallel", False):
        set_tensor_model_parallel_attributes(layer.weight, True, dimension, 1)
    return layer


def _keep(weight: Tensor) -> Tensor:
    """Megatron asks for an initialiser; ours runs later and does not depend on the layout."""
    return weight
