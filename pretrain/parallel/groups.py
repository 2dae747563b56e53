"""Process groups of the mesh, and their interface to DeepSpeed."""

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
        rank: Global rank of this process.
        tensor: Tensor-parallel peers, which shard this rank's layers; None if `mesh.tensor` is 1.
        data: Data-parallel peers: the same shard of the layers, other samples.
    """

    mesh: Mesh
    rank: int
    tensor: dist.ProcessGroup | None
    data: dist.ProcessGroup

    @classmethod
    def create(cls, mesh: Mesh) -> ProcessGroups:
        """Initialise torch.distributed, if that is not done (environment as in torchrun), and the groups.

        Raises:
            InputError: The number of processes is not the mesh's, or this process has megatron groups of
                another layout.
        """
        device = None
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            # Bound to its device, NCCL connects at once and splits groups off instead of creating each.
            dist.init_process_group("gloo" if device is None else "nccl", device_id=device)
        mesh.check_world(dist.get_world_size())
        rank = dist.get_rank()
        if mesh.tensor == 1:
            world = dist.group.WORLD
            assert world is not None
            return cls(mesh, rank, None, world)
        # Imported late: takes seconds, and only tensor parallelism needs it.
        from megatron.core import parallel_state

        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=mesh.tensor,
                # Its collectives run beside products, which would otherwise occupy the whole GPU first.
                high_priority_stream_groups=None if device is None else ["tp"],
            )
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
        """This process's tensor-parallel rank."""
        return self.mesh.tensor_rank(self.rank)

    @property
    def data_rank(self) -> int:
        """This process's data-parallel rank."""
        return self.mesh.data_rank(self.rank)

    @property
    def node_ranks(self) -> int:
        """Ranks on this rank's node, by torchrun's variable; without it all ranks."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.mesh.size))

    @property
    def device(self) -> torch.device:
        """Device of this rank."""
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


class ModelParallelUnit:
    """The interface that DeepSpeed expects of `mpu`: the same groups under its names."""

    def __init__(self, groups: ProcessGroups) -> None:
        assert groups.tensor is not None
        self._groups = groups
        self._tensor = groups.tensor

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Tensor-parallel group."""
        return self._tensor

    def get_model_parallel_rank(self) -> int:
        """Tensor-parallel rank."""
        return self._groups.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        """Tensor-parallel size."""
        return self._groups.mesh.tensor

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_tensor_model_parallel_src_rank(self) -> int:
        """Global rank of the first tensor-parallel peer."""
        return self._groups.rank - self._groups.tensor_rank

    def get_pipeline_model_parallel_rank(self) -> int:
        """There is no pipeline."""
        return 0

    def get_pipeline_model_parallel_world_size(self) -> int:
        """There is no pipeline."""
        return 1

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Data-parallel group."""
        return self._groups.data

    def get_data_parallel_rank(self) -> int:
        """Data-parallel rank."""
        return self._groups.data_rank

    def get_data_parallel_world_size(self) -> int:
        """Data-parallel size."""
        return self._groups.mesh.data

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Global ranks of the data-parallel group."""
        return dist.get_process_group_ranks(self._groups.data)
