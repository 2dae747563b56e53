"""The grid of ranks, as pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import InputError


@dataclass(frozen=True, slots=True)
class Mesh:
    """A grid of `data` x `tensor` ranks.

    Tensor-parallel peers have consecutive ranks, so that they are on one node::

        rank = data_rank * tensor + tensor_rank

    Attributes:
        tensor: Tensor-parallel size.
        data: Data-parallel size.
    """

    tensor: int
    data: int

    def __post_init__(self) -> None:
        if self.tensor < 1 or self.data < 1:
            raise InputError(
                f"parallel.tensor={self.tensor} parallel.data={self.data}: expected sizes of at least 1"
            )

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.tensor * self.data

    def tensor_rank(self, rank: int) -> int:
        """Tensor-parallel rank of a global rank."""
        return rank % self.tensor

    def data_rank(self, rank: int) -> int:
        """Data-parallel rank of a global rank."""
        return rank // self.tensor

    def check_world(self, world_size: int) -> None:
        """Check that the number of processes is that of the layout.

        Raises:
            InputError: It is not.
        """
        if world_size != self.size:
            raise InputError(
                f"{world_size} processes run, but parallel.tensor={self.tensor} x parallel.data={self.data} "
                f"needs {self.size}; start that many or change the layout"
            )
