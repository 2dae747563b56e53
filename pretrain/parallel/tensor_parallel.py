"""The network's layers shared out over tensor-parallel ranks, on megatron-core.

Each branch of a layer communicates twice: its input enters once, for all of its column layers, and its row
layer brings the sum of the ranks' parts back. Plain: every rank holds all T tokens of the residual stream;
entering is free and the gradient is summed there; the row layer sums. Sequence parallel (Korthikanti et al.,
arXiv 2205.05198): every rank holds T / ranks tokens; entering gathers them and scatters the summed
gradient; the row layer scatters its sum. As many bytes travel, norms, residuals and dropout are shared out.

In sequence parallel the parameters of norms, which every rank holds whole, see only a share of the tokens,
so their gradient is summed over the ranks (`whole_parameter`). The final hidden states are gathered once,
before the head picks the labelled ones; the head sums the gradient of its rows over the ranks
(`copy_to_ranks`), so that every rank has the whole of it and the gather's gradient is a plain slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn

from data.errors import InputError
from pretrain.model.factory import LayerFactory
from pretrain.parallel.collectives import (
    copy_to_ranks,
    gather_for_all,
    gather_for_shares,
    sum_and_share,
    sum_over_ranks,
)
from pretrain.parallel.groups import ProcessGroups

Communication = Callable[[Tensor], Tensor]


class TensorParallelFactory(LayerFactory):
    """Makes megatron's column-, row- and vocabulary-parallel layers.

    Every sharded parameter carries `tensor_model_parallel` and `partition_dim`: without them gradient
    norms (and so clipping) come out wrong, without an error.

    Args:
        groups: Of this rank.
        sequence_parallel: Share out the tokens between the branches too.
    """

    def __init__(self, groups: ProcessGroups, sequence_parallel: bool = False) -> None:
        if groups.tensor is None:
            raise ValueError("no tensor-parallel group: use the plain LayerFactory")
        self._group: dist.ProcessGroup = groups.tensor
        self._sequence_parallel = sequence_parallel
        self.size = groups.mesh.tensor
        self.rank = groups.tensor_rank
        self._config = ModelParallelConfig(
            tensor_model_parallel_size=self.size,
            use_cpu_initialization=not torch.cuda.is_available(),
            perform_initialization=False,  # weights are drawn by name afterwards
            params_dtype=torch.float32,
        )

    def embedding(self, rows: int, width: int) -> nn.Module:
        """See `LayerFactory.embedding`.

        Its forward raises InputError for tokens that do not divide by the ranks in sequence parallel.
        """
        layer = _Embedding(rows, width, init_method=_keep, config=self._config)
        layer.leave = self._leave
        return _mark(layer, 0)

    def column(self, inputs: int, outputs: int) -> nn.Module:
        """See `LayerFactory.column`."""
        layer = _Column(
            inputs,
            outputs,
            config=self._config,
            init_method=_keep,
            bias=False,
            gather_output=False,
            disable_grad_reduce=True,  # `enter` does it for all columns of a branch at once
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
        layer.leave = self._leave
        return _mark(layer, 1)

    def sharded_parameter(self, values: Tensor) -> nn.Parameter:
        """See `LayerFactory.sharded_parameter`."""
        parameter = nn.Parameter(values)
        set_tensor_model_parallel_attributes(parameter, True, 0, 1)
        return parameter

    def whole_parameter(self, parameter: Tensor) -> Tensor:
        """See `LayerFactory.whole_parameter`."""
        return copy_to_ranks(parameter, self._group) if self._sequence_parallel else parameter

    def enter(self, x: Tensor) -> Tensor:
        """See `LayerFactory.enter`."""
        return (gather_for_shares if self._sequence_parallel else copy_to_ranks)(x, self._group)

    def all_tokens(self, x: Tensor) -> Tensor:
        """See `LayerFactory.all_tokens`."""
        return gather_for_all(x, self._group) if self._sequence_parallel else x

    def _leave(self, x: Tensor) -> Tensor:
        """Each rank's part of all tokens [T, H] -> the sum, of this rank's tokens."""
        if not self._sequence_parallel:
            return sum_over_ranks(x, self._group)
        if len(x) % self.size:
            raise InputError(
                f"{len(x)} tokens do not divide by parallel.tensor={self.size}, the ranks that sequence "
                "parallel shares them out over; change trainer.sequence_length or set "
                "parallel.sequence_parallel=false"
            )
        return sum_and_share(x, self._group)

    def copy_to_ranks(self, values: Tensor) -> Tensor:
        """See `LayerFactory.copy_to_ranks`."""
        return copy_to_ranks(values, self._group)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """See `LayerFactory.sum_over_ranks`."""
        dist.all_reduce(values, group=self._group)
        return values

    def max_over_ranks(self, values: Tensor) -> Tensor:
        """See `LayerFactory.max_over_ranks`."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        return values


class _Embedding(VocabParallelEmbedding):
    leave: Communication

    def forward(self, input_: Tensor) -> Tensor:
        mine = (input_ >= self.vocab_start_index) & (input_ < self.vocab_end_index)
        rows = F.embedding(torch.where(mine, input_ - self.vocab_start_index, 0), self.weight)
        return self.leave(rows.masked_fill(~mine.unsqueeze(-1), 0.0))


class _Column(ColumnParallelLinear):
    def forward(self, input_: Tensor) -> Any:
        return super().forward(input_)[0]


class _Row(RowParallelLinear):
    leave: Communication

    def forward(self, input_: Tensor) -> Tensor:
        return self.leave(F.linear(input_, self.weight))


def _mark(layer: Any, dimension: int) -> nn.Module:
    """Say along which dimension the weight is shared out (megatron does so only where it initialises)."""
    if not getattr(layer.weight, "tensor_model_parallel", False):
        set_tensor_model_parallel_attributes(layer.weight, True, dimension, 1)
    return layer


def _keep(weight: Tensor) -> Tensor:
    """Megatron asks for an initialiser; ours runs later and does not depend on the layout."""
    return weight
