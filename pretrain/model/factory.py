"""Builds the sharded parts of the network; the network itself knows nothing of ranks.

The plain factory builds ordinary torch layers with whole matrices. The tensor-parallel one
(`pretrain.parallel.tensor_parallel`) builds layers with this rank's shard of the heads, of the
feed-forward and of the vocabulary, with the same names and the same results.

The residual stream is a flat list of tokens. Each rank holds all T of them or, in sequence parallel, its
T / size; below, R is the number that this rank holds. A branch computes all T with this rank's shard of the
matrices, from its `column` layers, which `columns` applies, to its `row` layer, which returns R tokens.

Shapes: T tokens, R tokens of this rank's residual stream, H hidden.
"""

from __future__ import annotations

from torch import Tensor, nn


class LayerFactory:
    """Plain layers: the whole model on one rank.

    Attributes:
        size: Number of ranks that each layer is sharded over.
        rank: This rank's number among them, from 0.
    """

    size: int = 1
    rank: int = 0

    def embedding(self, rows: int, width: int) -> nn.Module:
        """Token ids [T] -> vectors [R, width]; the `rows` of the table are sharded over the ranks."""
        return nn.Embedding(rows, width)

    def column(self, inputs: int, outputs: int) -> nn.Module:
        """Linear without bias whose outputs are sharded; see `columns`."""
        return nn.Linear(inputs, outputs, bias=False)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """Linear without bias whose inputs are sharded: [T, inputs / size] -> [R, outputs]."""
        return nn.Linear(inputs, outputs, bias=False)

    def sharded_parameter(self, values: Tensor) -> nn.Parameter:
        """A parameter of which each rank holds its rows.

        Args:
            values: This rank's shard [rows / size, ...].
        """
        return nn.Parameter(values)

    def replicated_parameter(self, parameter: Tensor) -> Tensor:
        """A parameter that every rank holds, any shape, in the form to apply to this rank's R tokens."""
        return parameter

    def columns(self, x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
        """Apply the column layers of a branch to its input: [R, inputs] -> [T, outputs / size] each."""
        return tuple(layer(x) for layer in layers)

    def gather_tokens(self, x: Tensor) -> Tensor:
        """This rank's tokens [R, H] -> all tokens [T, H], before replicated computation."""
        return x

    def copy_to_ranks(self, values: Tensor) -> Tensor:
        """Identity, any shape, whose gradient is summed over the ranks: used before sharded computation."""
        return values

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum over the ranks, any shape, in place; no gradient."""
        return values

    def max_over_ranks(self, values: Tensor) -> Tensor:
        """Maximum over the ranks, any shape, in place; no gradient."""
        return values
