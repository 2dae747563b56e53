"""Process groups of the mesh, and how they are shown to DeepSpeed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from data.errors import InputError
from pretrain.parallel.mesh import Mesh


@dataclass(frozen=True)
class ProcessGroups:
    """The groups that this rank belongs to.

    Attributes:
        mesh: The grid.
        rank: This process's number.
        tensor: Peers that share this rank's layers; None when `mesh.tensor` is 1.
        data: Peers that hold the same share of the layers and see other samples.
    """

    mesh: Mesh
    rank: int
    tensor: dist.ProcessGroup | None
    data: dist.ProcessGroup

    @classmethod
    def create(cls, mesh: Mesh) -> ProcessGroups:
        """Join the world (if not yet joined; environment as torchrun sets it) and make the groups.

        Raises:
            InputError: Another number of processes runs than the mesh needs, or megatron's groups are of
                another layout.
        """
        device = None
        if torch.cuda.is_available():
            # Also where others have joined the world already: Ray Train does, shows each rank all GPUs of
            # the node, and leaves them all on the first.
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            # Bound to its device, NCCL connects at once and splits groups off instead of starting anew.
            dist.init_process_group("gloo" if device is None else "nccl", device_id=device)
        mesh.check_world(dist.get_world_size())
        rank = dist.get_rank()
        if mesh.tensor == 1:
            world = dist.group.WORLD
            assert world is not None
            return cls(mesh, rank, None, world)
        # Imported late: it takes seconds, and layouts without tensor parallelism do not need it.
        from megatron.core import parallel_state

        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(tensor_model_parallel_size=mesh.tensor)
        tensor = parallel_state.get_tensor_model_parallel_group()
        data = parallel_state.get_data_parallel_group()
        assert isinstance(tensor, dist.ProcessGroup)
        assert isinstance(data, dist.ProcessGroup)
        if dist.get_world_size(tensor) != mesh.tensor:
            raise InputError(
                f"parallel.tensor={mesh.tensor}, but this process already has megatron groups of "
                f"{dist.get_world_size(tensor)}; start a new process for another layout"
            )
        return cls(mesh, rank, tensor, data)

    @property
    def tensor_rank(self) -> int:
        """Place among the ranks that share layers."""
        return self.mesh.tensor_rank(self.rank)

    @property
    def data_rank(self) -> int:
        """Place among the ranks that see other samples."""
        return self.mesh.data_rank(self.rank)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


class ModelParallelUnit:
    """What DeepSpeed asks of `mpu`: the same groups under the names that it looks for."""

    def __init__(self, groups: ProcessGroups) -> None:
        assert groups.tensor is not None
        self._groups = groups
        self._tensor = groups.tensor

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Peers that share this rank's layers."""
        return self._tensor

    def get_model_parallel_rank(self) -> int:
        """Place among them."""
        return self._groups.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        """Their number."""
        return self._groups.mesh.tensor

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_tensor_model_parallel_src_rank(self) -> int:
        """First of them."""
        return self._groups.rank - self._groups.tensor_rank

    def get_pipeline_model_parallel_rank(self) -> int:
        """There is no pipeline."""
        return 0

    def get_pipeline_model_parallel_world_size(self) -> int:
        """There is no pipeline."""
        return 1

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Peers that hold the same share of the layers."""
        return self._groups.data

    def get_data_parallel_rank(self) -> int:
        """Place among them."""
        return self._groups.data_rank

    def get_data_parallel_world_size(self) -> int:
        """Their number."""
        return self._groups.mesh.data

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their world ranks."""
        return dist.get_process_group_ranks(self._groups.data)
