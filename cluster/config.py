"""The settings of whole commands: training with its evaluations on a cluster, and the demo."""

from __future__ import annotations

from dataclasses import dataclass, field

from data.config import PrepareConfig
from eval.config import EvaluationConfig
from pretrain.config import TrainingConfig
from pretrain.model.config import ModelConfig


@dataclass
class ClusterConfig:
    """Which machines a run takes.

    Attributes:
        address: An existing Ray cluster (`auto` or `host:port`); null starts a private one on this machine,
            which ends with the command.
        cpus: Logical CPUs of the private Ray; null: as many as the run needs.
        cpus_per_rank: Logical CPUs that one training process takes.
        gpus_per_rank: GPUs that one training process takes (0 or 1); null: 1 where there is a GPU, else 0.
        object_store_megabytes: Shared memory of the private Ray.
        start_timeout: Seconds within which the training processes must have started.
        least_data: Smallest `parallel.data` to go on with where nodes are lost, with the same global batch;
            the run grows again when they come back. Null: it waits for them, and ends with exit code 85.
        node_timeout: Seconds in which lost nodes may come back before that.
        restarts: Times in a row that a training which failed is started again from its newest checkpoint;
            counted anew when a later checkpoint has been committed. 0: never.
        restart_delay: Seconds before the first of them, doubled before each further one (300 at most).
        gpus_per_node: GPUs of one node, for plans and jobs.
        gpu: The GPUs' name in the planner's table (`H100`); null: unknown.
        gpu_memory: Memory of one GPU (`80GB`); null: unknown.
        network: Between the nodes: `infiniband`, `efa` (AWS) or `tcp`; decides which variables NCCL gets in a
            Slurm job.
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
    network: str = "infiniband"


@dataclass
class PrepareCommandConfig(PrepareConfig):
    """`worldvla prepare`.

    Attributes:
        workers: Processes that encode; with 1 the command itself does, without Ray. Each makes one shard at a
            time: `shard_megabytes` small enough for several a worker keeps all of them busy.
        gpus_per_worker: GPUs of each process, a share below 1 puts several on one GPU; 0: CPUs.
        address: Existing Ray cluster (`auto` or `host:port`) whose machines the processes take; null starts a
            private one on this machine.
    """

    workers: int = 1
    gpus_per_worker: float = 0.0
    address: str | None = None


@dataclass
class RootConfig(TrainingConfig):
    """Everything that `worldvla train` needs to know.

    Attributes:
        eval: Evaluations beside the training.
        cluster: Which machines the run takes.
    """

    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass
class DemoStageConfig:
    """What the demo does around its training.

    Attributes:
        episodes: Demonstrations to collect per task.
        workers: Simulator processes that collect.
        resume_tensor: Tensor-parallel size of the second half of the training.
        resume_data: Data-parallel size of the second half of the training.
    """

    episodes: int = 30
    workers: int = 2
    resume_tensor: int = 1
    resume_data: int = 2


@dataclass
class DemoConfig(RootConfig):
    """`worldvla demo`: the settings of `worldvla train experiment=demo` and of the demo's own stages.

    Attributes:
        demo: What the demo does around its training.
    """

    demo: DemoStageConfig = field(default_factory=DemoStageConfig)


@dataclass
class InspectClusterConfig(RootConfig):
    """`worldvla inspect cluster`: the settings of `worldvla train`, and the nodes.

    Attributes:
        nodes: Nodes with `cluster.gpus_per_node` GPUs each (none where `cluster.gpus_per_rank` is 0).
        cpus_per_node: Logical CPUs of each node.
        cpu_nodes: Further nodes without GPUs.
    """

    nodes: int = 1
    cpus_per_node: int = 96
    cpu_nodes: int = 0


@dataclass
class DoctorConfig:
    """`worldvla doctor`: is this machine, or this Slurm allocation, fit for a run?

    Attributes:
        folder: Where runs are kept; on a cluster a folder that all nodes share.
        url: Data set to try to read; null: none.
        all_reduce: Measure an all-reduce between the nodes of the allocation, or on this machine.
        render: Draw a frame.
    """

    folder: str = "runs"
    url: str | None = None
    all_reduce: bool = True
    render: bool = True


@dataclass
class ReportConfig:
    """`worldvla report`: one run, or several beside each other.

    Attributes:
        run: The run's folder; the page is `report.html` in it.
        runs: Two to four run folders to compare, instead of `run`.
        out: Page of a comparison.
    """

    run: str | None = None
    runs: list[str] | None = None
    out: str = "comparison.html"


@dataclass
class ConvertImportConfig:
    """`worldvla convert import`.

    Attributes:
        source: What it is decides what is made of it. A folder with config.json and safetensors files
            (Chameleon, Lumina-mGPT, WorldVLA) becomes a checkpoint to start a training from; Chameleon's
            vqgan.ckpt (vqgan.yaml beside it tells other sizes than Chameleon's) becomes an image tokenizer.
        out: New checkpoint folder, or new image tokenizer file (*.safetensors).
        shard_megabytes: Largest file of a checkpoint; a larger tensor gets a file of its own.
        pixels: Side of the frames that an image tokenizer is for (Chameleon's serves 256 as well as 512);
            null: the side in vqgan.yaml, 512 without it.
    """

    source: str = "???"
    out: str = "???"
    shard_megabytes: int = 2000
    pixels: int | None = None


@dataclass
class ConvertExportConfig:
    """`worldvla convert export`.

    Attributes:
        checkpoint: Folder of a checkpoint, of a training in any layout or imported.
        out: New folder for config.json and safetensors files.
        dtype: `float32`, `bfloat16` or `float16`; null: imported weights keep theirs, a training's become
            bfloat16.
        image_tokenizer: Image tokenizer file whose encoder goes along as `model.vqmodel.*` (only one that has
            the network of Chameleon's vqgan.ckpt); null: without.
        shard_megabytes: Largest weight file; a larger tensor gets a file of its own.
    """

    checkpoint: str = "???"
    out: str = "???"
    dtype: str | None = None
    image_tokenizer: str | None = None
    shard_megabytes: int = 5000


@dataclass
class InspectPlanConfig:
    """`worldvla inspect plan`: the order of the data as a pure function of seed and step.

    Attributes:
        url: Folder or object-store prefix with `index.json`.
        seed: `trainer.seed`.
        step: Optimiser step, from 0.
        ranks: Data-parallel ranks that share the step.
        global_batch: `trainer.global_batch`.
        sequence_length: `trainer.sequence_length`.
        history: `data.history`.
        chunk: `data.chunk`.
    """

    url: str = "???"
    seed: int = 0
    step: int = 0
    ranks: int = 1
    global_batch: int = 8
    sequence_length: int = 4096
    history: int = 2
    chunk: int = 5


@dataclass
class InspectDataConfig:
    """`worldvla inspect data`.

    Attributes:
        url: Folder or object-store prefix with `index.json`.
        verify: Read every episode: its checksum is compared and its actions are counted.
        sheet: PNG that receives decoded frames of some episodes; null: none.
        image_tokenizer: The VQ-GAN weights that the frames were encoded with; null takes the small one that
            ships.
        episodes: How many episodes the picture shows, evenly spread over the data set.
    """

    url: str = "???"
    verify: bool = True
    sheet: str | None = "contact_sheet.png"
    image_tokenizer: str | None = None
    episodes: int = 6


@dataclass
class InspectCheckpointConfig:
    """`worldvla inspect checkpoint`.

    Attributes:
        path: A run's folder, a folder or URL of checkpoints, or one checkpoint.
        verify: Read every file and compare its checksum; false: list alone.
    """

    path: str = "???"
    verify: bool = True


@dataclass
class InspectMemoryConfig:
    """`worldvla inspect memory`: layouts that fit, at ZeRO stage 3 in bf16.

    Attributes:
        model: The network, `model=7b` or single sizes; its recompute policy is not read, all are tried.
        gpus: Number of GPUs.
        gpu_memory: Of one: `80GB`, `79.6GiB`, or a number of GB.
        reserve: Share of it kept for the driver, communication and fragments of the allocator.
        sequence_length: `trainer.sequence_length`.
        micro_batches: Values of `trainer.micro_batch` to try.
        global_batch: `trainer.global_batch`; null: four sequences for each GPU.
        gpu: Name in the table of data sheets (H100, H200, A100, B200, L40S, H100 PCIe, H100 NVL).
        efficiency: Share of the GPU's peak that the step time is estimated with.
        node_gpus: GPUs of one node; tensor parallelism stays inside.
        offloads: Values of `parallel.offload` to try.
        host_memory: Host memory of a node, as `gpu_memory`; null: as much as is needed.
        optimizer: `optim.name`: `adamw` or `lion`.
        show: Layouts to print; `--json` has all.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    gpus: int = 8
    gpu_memory: str = "80GB"
    reserve: float = 0.1
    sequence_length: int = 4096
    micro_batches: list[int] = field(default_factory=lambda: [1, 2, 4])
    global_batch: int | None = None
    gpu: str = "H100"
    efficiency: float = 0.45
    node_gpus: int = 8
    offloads: list[str] = field(default_factory=lambda: ["none", "optimizer", "all"])
    host_memory: str | None = None
    optimizer: str = "adamw"
    show: int = 12
