"""How the network makes its sharded parts, without knowing of ranks.

The plain factory makes ordinary torch layers that hold whole matrices. The tensor-parallel one
(`pretrain.parallel.tensor_parallel`) makes layers that hold this rank's share of the heads, of the
feed-forward and of the vocabulary, with the same names and the same results.

The residual stream is a flat list of tokens. Each rank holds all T of them or, in sequence parallel, its
share; a branch takes them in with `enter`, works on all T with its share of the matrices between `column`
and `row`, and comes back with its tokens.
"""

from __future__ import annotations

from torch import Tensor, nn


class LayerFactory:
    """Plain layers: the whole model in one place.

    Attributes:
        size: Ranks that share each layer.
        rank: This rank among them.
    """

    size: int = 1
    rank: int = 0

    def embedding(self, rows: int, width: int) -> nn.Module:
        """Token ids [T] -> vectors of this rank's tokens [T, width]; rows are shared out over the ranks."""
        return nn.Embedding(rows, width)

    def column(self, inputs: int, outputs: int) -> nn.Module:
        """Linear without bias whose outputs are shared out: [T, inputs] -> [T, outputs / size]."""
        return nn.Linear(inputs, outputs, bias=False)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """Linear without bias whose inputs are shared out: [T, inputs / size] -> this rank's [T, outputs]."""
        return nn.Linear(inputs, outputs, bias=False)

    def sharded_parameter(self, values: Tensor) -> nn.Parameter:
        """A parameter of which each rank holds its rows; `values` has the shape of the share."""
        return nn.Parameter(values)

    def whole_parameter(self, parameter: Tensor) -> Tensor:
        """A parameter that each rank holds whole, as it is used on this rank's tokens."""
        return parameter

    def enter(self, x: Tensor) -> Tensor:
        """This rank's tokens -> all tokens [T, H], once before the column layers of a branch."""
        return x

    def all_tokens(self, x: Tensor) -> Tensor:
        """This rank's tokens -> all tokens [T, H], before work that each rank does for all of them."""
        return x

    def copy_to_ranks(self, values: Tensor) -> Tensor:
        """Identity whose gradient is summed over the ranks: put before work that is shared out."""
        return values

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place; no gradient."""
        return values

    def max_over_ranks(self, values: Tensor) -> Tensor:
        """Maximum over the ranks, in place; no gradient."""
        return values


def shard_of(values: Tensor, dimension: int, rank: int, size: int) -> Tensor:
    """Share number `rank` of `size` equal shares of a tensor along a dimension."""
    if values.shape[dimension] % size:
        raise ValueError(f"dimension {dimension} of {tuple(values.shape)} does not divide by {size}")
    return values.chunk(size, dim=dimension)[rank]
