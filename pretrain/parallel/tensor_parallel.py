"""The network's layers sharded over tensor-parallel ranks, on megatron-core.

Each branch of a layer communicates twice: at its input, once for all of its column layers
(`pretrain.parallel.column_layers`), and at its row layer, which sums the ranks' partial results. Without
sequence parallelism every rank holds all T tokens of the residual stream: the input is used as it is and its
gradient summed; the row layer sums. With sequence parallelism (Korthikanti et al., arXiv 2205.05198) every
rank holds T / size tokens: the input is gathered and its gradient summed and scattered; the row layer sums
and scatters. The bytes are the same, while norms, residuals and dropout are sharded.

With sequence parallelism the replicated parameters of norms see only a shard of the tokens, so their
gradient is summed over the ranks (`replicated_parameter`). The final hidden states are gathered once, before
the head selects the labelled ones; the head sums the gradient of its rows over the ranks (`copy_to_ranks`),
so that every rank has all of it and the gradient of the gather is a plain slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

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
    gather_for_replicated_work,
    reduce_scatter,
    sum_over_ranks,
)
from pretrain.parallel.column_layers import apply_columns
from pretrain.parallel.groups import ProcessGroups

Communication = Callable[[Tensor], Tensor]


class TensorParallelFactory(LayerFactory):
    """Builds megatron's column-, row- and vocabulary-parallel layers.

    Every sharded parameter has the attributes `tensor_model_parallel` and `partition_dim`: without them
    gradient norms (and so clipping) are wrong, without an error.

    Args:
        groups: Of this rank.
        sequence_parallel: Whether to shard the tokens between the branches, too.

    Raises:
        ValueError: The mesh has no tensor-parallel group.
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
            perform_initialization=False,  # weights are initialised by name afterwards
            params_dtype=torch.float32,
        )

    def embedding(self, rows: int, width: int) -> nn.Module:
        """See `LayerFactory.embedding`.

        Its forward raises InputError for tokens that do not divide by the ranks in sequence parallel.
        """
        layer = _Embedding(rows, width, init_method=_no_initialisation, config=self._config)
        layer.reduce_output = self._reduce_output
        return _mark(layer, 0)

    def column(self, inputs: int, outputs: int) -> nn.Module:
        """See `LayerFactory.column`."""
        layer = ColumnParallelLinear(
            inputs,
            outputs,
            config=self._config,
            init_method=_no_initialisation,
            bias=False,
            gather_output=False,
        )
        return _mark(layer, 0)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """See `LayerFactory.row`."""
        layer = _Row(
            inputs,
            outputs,
            config=self._config,
            init_method=_no_initialisation,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
        )
        layer.reduce_output = self._reduce_output
        return _mark(layer, 1)

    def sharded_parameter(self, values: Tensor) -> nn.Parameter:
        """See `LayerFactory.sharded_parameter`."""
        parameter = nn.Parameter(values)
        set_tensor_model_parallel_attributes(parameter, True, 0, 1)
        return parameter

    def replicated_parameter(self, parameter: Tensor) -> Tensor:
        """See `LayerFactory.replicated_parameter`."""
        return copy_to_ranks(parameter, self._group) if self._sequence_parallel else parameter

    def columns(self, x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
        """See `LayerFactory.columns`.

        The layers' weights are used outside of their modules. ZeRO-3 gathers such parameters with the module
        that is running, the branch, from their first use on.
        """
        weights = [cast(Tensor, layer.weight) for layer in layers]
        return apply_columns(x, weights, self._group, self._sequence_parallel)

    def gather_tokens(self, x: Tensor) -> Tensor:
        """See `LayerFactory.gather_tokens`."""
        return gather_for_replicated_work(x, self._group) if self._sequence_parallel else x

    def _reduce_output(self, x: Tensor) -> Tensor:
        """Each rank's partial result [T, H] -> the sum [R, H] of this rank's tokens."""
        if not self._sequence_parallel:
            return sum_over_ranks(x, self._group)
        if len(x) % self.size:
            raise InputError(
                f"{len(x)} tokens do not divide by parallel.tensor={self.size}, which "
                "parallel.sequence_parallel=true requires; change trainer.sequence_length or set "
                "parallel.sequence_parallel=false"
            )
        return reduce_scatter(x, self._group)

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
    reduce_output: Communication

    def forward(self, input_: Tensor) -> Tensor:
        local = (input_ >= self.vocab_start_index) & (input_ < self.vocab_end_index)
        rows = F.embedding(torch.where(local, input_ - self.vocab_start_index, 0), self.weight)
        return self.reduce_output(rows.masked_fill(~local.unsqueeze(-1), 0.0))


class _Row(RowParallelLinear):
    reduce_output: Communication

    def forward(self, input_: Tensor) -> Tensor:
        return self.reduce_output(F.linear(input_, self.weight))


def _mark(layer: Any, dimension: int) -> nn.Module:
    """Set the attributes of a sharded weight, which megatron sets only when it initialises."""
    if not getattr(layer.weight, "tensor_model_parallel", False):
        set_tensor_model_parallel_attributes(layer.weight, True, dimension, 1)
    return layer


def _no_initialisation(weight: Tensor) -> Tensor:
    """Placeholder for the initialiser that megatron requires; ours runs later, whatever the layout."""
    return weight
