"""Settings of the commands that run on a cluster: training with its evaluations, and preparation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.config import PrepareConfig
from eval.config import EvaluationConfig
from pretrain.config import TrainingConfig

Network = Literal["infiniband", "efa", "tcp"]


@dataclass
class ClusterConfig:
    """The machines of a run.

    Attributes:
        address: An existing Ray cluster (`auto` or `host:port`); null starts a private one on this machine
            for the length of the command.
        cpus: Logical CPUs of the private Ray; null: as many as the run needs.
        cpus_per_rank: Logical CPUs of one training process.
        gpus_per_rank: GPUs of one training process (0 or 1); null: 1 where there is a GPU, else 0.
        object_store_megabytes: Shared memory of the private Ray.
        start_timeout: Seconds within which the training processes must have started.
        least_data: Smallest `parallel.data` to continue with if nodes are lost, at the same global batch; the
            run grows again when they return. Null: it waits for them, and ends with exit code 85.
        node_timeout: Seconds in which lost nodes may return before that.
        restarts: Restarts in a row of a training that fails, each from its newest checkpoint; counted from
            zero when a later checkpoint has been committed. 0: never.
        restart_delay: Seconds before the first restart, doubled before each further one (300 at most).
        gpus_per_node: GPUs of one node, for plans and jobs.
        gpu: The GPU's name in the planner's table (`H100`); null: unknown.
        gpu_memory: Memory of one GPU (`80GB`); null: unknown.
        network: Between the nodes: `infiniband`, `efa` (AWS) or `tcp`; decides which variables are set for
            NCCL in a Slurm job.
    """

    address: str | None = None
    cpus: int | None = None
    cpus_per_rank: int = 1
    gpus_per_rank: int | None = None
    object_store_megabytes: int = 100
    start_timeout: int = 180
    least_data: int | None = None
    node_timeout: float = 60.0
    restarts: int = 5
    restart_delay: float = 5.0
    gpus_per_node: int = 8
    gpu: str | None = None
    gpu_memory: str | None = None
    network: Network = "infiniband"


@dataclass
class PrepareCommandConfig(PrepareConfig):
    """`worldvla prepare`.

    Attributes:
        workers: Processes that encode; 1: the command itself, without Ray. Each makes one shard at a time:
            all are busy if `shard_megabytes` is small enough for several shards per worker.
        gpus_per_worker: GPUs of each process; a share below 1 puts several on one GPU; 0: CPUs.
        address: Existing Ray cluster (`auto` or `host:port`) for the processes; null starts a private one on
            this machine.
    """

    workers: int = 1
    gpus_per_worker: float = 0.0
    address: str | None = None


@dataclass
class RootConfig(TrainingConfig):
    """All settings of `worldvla train`.

    Attributes:
        eval: Evaluations beside the training.
        cluster: The machines of the run.
    """

    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def last_step(self) -> int:
        """Step that ends this command's training: `trainer.steps` or, if earlier, `trainer.stop_after`."""
        return min(self.trainer.steps, self.trainer.stop_after or self.trainer.steps)
