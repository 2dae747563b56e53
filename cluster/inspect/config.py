"""Settings of `worldvla inspect`."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.config import RootConfig
from data.config import MixtureConfig, Shuffle, TrainingSplit
from data.contracts import AGENT_CAMERA
from pretrain.config import Offload, OptimizerName, ZeroStage
from pretrain.model.config import ModelConfig
from pretrain.planner.gpus import DEFAULT_EFFICIENCY, DEFAULT_MEMORY_RESERVE


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
class InspectPlanConfig:
    """`worldvla inspect plan`: the order of the data, a pure function of seed and step.

    Attributes:
        url: Folder or object-store prefix with `index.json`.
        seed: `trainer.seed`.
        step: Optimiser step, from 0.
        ranks: Data-parallel ranks that share the step.
        global_batch: `trainer.global_batch`.
        sequence_length: `trainer.sequence_length`.
        history: `data.history`.
        chunk: `data.chunk`.
        predicted_frames: `data.predicted_frames`.
        cameras: `data.cameras`.
        state: `data.state`.
        mixture: `data.mixture`.
        variants: `data.variants`.
        split: `data.split`.
        memory_megabytes: `data.memory_megabytes`.
        shuffle: `data.shuffle`.
        shuffle_episodes: `data.shuffle_episodes`.
    """

    url: str = "???"
    seed: int = 0
    step: int = 0
    ranks: int = 1
    global_batch: int = 8
    sequence_length: int = 4096
    history: int = 2
    chunk: int = 5
    predicted_frames: int = 1
    cameras: list[str] = field(default_factory=lambda: [AGENT_CAMERA])
    state: bool = False
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    variants: int = 0
    split: TrainingSplit = "train"
    memory_megabytes: int = 512
    shuffle: Shuffle = "auto"
    shuffle_episodes: int = 32


@dataclass
class InspectDataConfig:
    """`worldvla inspect data`.

    Attributes:
        url: Folder or object-store prefix with `index.json`.
        verify: Read every episode: its checksum is compared, its actions and states are counted.
        sheet: Draw a contact sheet, decoded frames of some episodes and of their variants.
        out: Its PNG file, or a folder that exists, for `contact_sheet.png` in it; it is drawn then. null:
            beside the data set's index, or in the folder of temporary files where that is in an object store
            or cannot be written.
        image_tokenizer: The VQ-GAN weights that the frames were encoded with; null: the small one that is
            included.
        episodes: Episodes in the picture, evenly spread over the data set.
    """

    url: str = "???"
    verify: bool = True
    sheet: bool = False
    out: str | None = None
    image_tokenizer: str | None = None
    episodes: int = 6


@dataclass
class InspectCheckpointConfig:
    """`worldvla inspect checkpoint`.

    Attributes:
        path: A run's folder, a folder or URL of checkpoints, or one checkpoint.
        verify: Read every file and compare its checksum; false: only list them.
    """

    path: str = "???"
    verify: bool = True


@dataclass
class InspectMemoryConfig:
    """`worldvla inspect memory`: layouts that fit, in bf16.

    Attributes:
        model: The network, `model=7b` or single sizes; its recompute policy is ignored, all are tried.
        gpus: Number of GPUs.
        gpu_memory: Of one: `80GB`, `79.6GiB`, or a number of GB.
        reserve: Share of it reserved for the driver, communication and fragments of the allocator.
        sequence_length: `trainer.sequence_length`.
        micro_batches: Values of `trainer.micro_batch` to try.
        global_batch: `trainer.global_batch`; null: four sequences for each GPU.
        gpu: Name in the table of data sheets (H100, H200, A100, B200, L40S, H100 PCIe, H100 NVL).
        efficiency: Share of the GPU's peak that the step time is estimated with.
        node_gpus: GPUs of one node; tensor parallelism stays inside.
        offloads: Values of `parallel.offload` to try.
        host_memory: Host memory of a node, as `gpu_memory`; null: unlimited.
        optimizer: `optim.name`: `adamw` or `lion`.
        ema: Count an average of the weights (`optim.ema`).
        stages: Values of `parallel.zero_stage` to try; something is offloaded at stage 3 alone.
        hpz: Try `parallel.hpz_partition_size=<node_gpus>` as well, where it is possible.
        show: Layouts to print; `--json` has all.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    gpus: int = 8
    gpu_memory: str = "80GB"
    reserve: float = DEFAULT_MEMORY_RESERVE
    sequence_length: int = 4096
    micro_batches: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    global_batch: int | None = None
    gpu: str = "H100"
    efficiency: float = DEFAULT_EFFICIENCY
    node_gpus: int = 8
    offloads: list[Offload] = field(default_factory=lambda: ["none", "optimizer", "all"])
    host_memory: str | None = None
    optimizer: OptimizerName = "adamw"
    ema: bool = False
    stages: list[ZeroStage] = field(default_factory=lambda: [0, 1, 2, 3])
    hpz: bool = True
    show: int = 12
