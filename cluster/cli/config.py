"""Settings of the demo, of conversions and of reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.config import RootConfig
from data.contracts import WeightsChoice
from pretrain.config import WeightsDtype, WeightsLayout, ZeroStage


@dataclass
class DemoStageConfig:
    """Stages of the demo around its training.

    Attributes:
        episodes: Demonstrations to collect per task.
        displaced: Probability that one begins displaced (`CollectConfig`).
        workers: Simulator processes that collect.
        first_steps: Steps of the training before it stops and resumes at another layout; at most half of all.
        resume_tensor: Tensor-parallel size from there on.
        resume_data: Data-parallel size from there on.
        resume_zero_stage: ZeRO stage from there on: 1 needs no gathering of parameters, and a small model's
            fit on every rank.
    """

    episodes: int = 100
    displaced: float = 0.7
    workers: int = 2
    first_steps: int = 60
    resume_tensor: int = 1
    resume_data: int = 2
    resume_zero_stage: ZeroStage = 1


@dataclass
class DemoConfig(RootConfig):
    """`worldvla demo`: the settings of `worldvla train experiment=demo` and of the demo's own stages.

    Attributes:
        demo: Stages of the demo around its training.
    """

    demo: DemoStageConfig = field(default_factory=DemoStageConfig)


@dataclass
class ReportConfig:
    """`worldvla report`: one run, one evaluation, or a comparison of several runs.

    Attributes:
        run: The run's folder, or that of one evaluation.
        runs: Two to four run folders to compare, instead of `run`.
        out: The page, a name that ends in `.html`; null: `report.html` in the folder of `run`, or
            `comparison.html` of `runs`.
    """

    run: str | None = None
    runs: list[str] | None = None
    out: str | None = None


@dataclass
class ConvertImportConfig:
    """`worldvla convert import`.

    Attributes:
        source: What to import. A folder with config.json and safetensors files (Chameleon, Lumina-mGPT,
            WorldVLA, RynnVLA-002) becomes a checkpoint to start a training from; Chameleon's vqgan.ckpt
            (vqgan.yaml beside it gives sizes other than Chameleon's) becomes an image tokenizer.
        out: New checkpoint folder, or new image tokenizer file (*.safetensors).
        shard_megabytes: Largest file of a checkpoint; a larger tensor is in a file of its own.
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
        layout: Of the folder: `transformers` (ChameleonForConditionalGeneration; a continuous action head,
            which it does not have, is in a file of its own) or `published` (the class of WorldVLA and
            RynnVLA-002: fewer rows in q/k norms, the action head among the weights).
        dtype: `float32`, `bfloat16` or `float16`; null: that of imported weights, bfloat16 for
            those of a training.
        image_tokenizer: Image tokenizer file whose encoder is exported as `model.vqmodel.*` (only with the
            network of Chameleon's vqgan.ckpt); null: none.
        shard_megabytes: Largest weight file; a larger tensor is in a file of its own.
        embodiment: Name of the data set, of several that the checkpoint was trained on, whose embodiment
            `policy.json` is to be of; needed for `layout=published`, whose class knows one; null: all.
        weights: Weights of the checkpoint, as for `worldvla eval`.
    """

    checkpoint: str = "???"
    out: str = "???"
    layout: WeightsLayout = "transformers"
    dtype: WeightsDtype | None = None
    image_tokenizer: str | None = None
    shard_megabytes: int = 5000
    embodiment: str | None = None
    weights: WeightsChoice = "auto"
