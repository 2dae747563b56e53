"""Settings of a training run: typed, with their defaults, in one place.

`configs/` holds only differences from these; a key that is not here is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.config import DataConfig, SourceConfig
from data.contracts import Decoder
from data.stream.order.mixture import action_share
from pretrain.model.config import ModelConfig

Precision = Literal["bf16", "fp32"]
ZeroStage = Literal[0, 1, 2, 3]
ZeroStageChoice = Literal[0, 1, 2, 3, "auto"]
Allocator = Literal["expandable_segments", "default"]
Offload = Literal["none", "optimizer", "all"]
OptimizerName = Literal["adamw", "lion"]
Schedule = Literal["constant", "cosine", "wsd"]
WeightsDtype = Literal["float32", "bfloat16", "float16"]
WeightsLayout = Literal["transformers", "published"]
WandbMode = Literal["auto", "online", "offline", "disabled"]


@dataclass
class RunConfig:
    """Names the run; its folder is `<dir>/<name>`.

    Attributes:
        name: Name of the folder.
        dir: Folder that holds it.
        change: Settings (or sections of them) whose values differ from those of the run's earlier starts on
            purpose, such as `[trainer.steps,optim.lr]`; any other difference is refused. `events.jsonl` keeps
            the changes.
    """

    name: str = "???"
    dir: str = "runs"
    change: list[str] = field(default_factory=list[str])


@dataclass
class TrainerConfig:
    """The training loop.

    Attributes:
        steps: Optimiser steps of the whole schedule.
        stop_after: Stop (with a checkpoint) after this many steps in total; the schedule is unchanged.
        seed: Of initialisation, order and dropout.
        global_batch: Packed sequences in one optimiser step, over all ranks.
        micro_batch: Sequences that one rank processes at a time; null: its whole share of the step.
        sequence_length: Tokens in a packed sequence.
        precision: `bf16` (fp32 master weights) or `fp32`.
        log_every: Steps between two lines of metrics.
        deterministic: Only algorithms whose results repeat bit for bit on the same layout and hardware;
            slower on a GPU (docs/model.md, "What repeats bit for bit").
        allocator: Of GPU memory: `expandable_segments` (torch's blocks can grow, so that less is lost to
            fragments) or torch's `default`; variables of torch's own that are set take precedence.
    """

    steps: int = 1000
    stop_after: int | None = None
    seed: int = 0
    global_batch: int = 8
    micro_batch: int | None = None
    sequence_length: int = 4096
    precision: Precision = field(
        default="bf16",
        metadata={
            "refused": {
                "fp8": "no layout trains in fp8 yet (docs/fp8.md says what stands in the way); set it to bf16"
            }
        },
    )
    log_every: int = 1
    deterministic: bool = False
    allocator: Allocator = "expandable_segments"


@dataclass
class ParallelConfig:
    """Layout of the ranks; their number is `tensor * data`.

    Attributes:
        tensor: Tensor-parallel size (megatron).
        data: Data-parallel size.
        zero_stage: DeepSpeed ZeRO stage: 0 shards nothing, 1 the optimiser state, 2 also gradients, 3 also
            parameters; `auto`: of these the quickest that fits the GPU's memory, by estimate.
        offload: State in host memory: `none`, `optimizer` (fp32 weights and moments, stages 1 to 3) or
            `all` (parameters too, stage 3).
        hpz_partition_size: Ranks of one node that hold a second copy of the parameters, so that the backward
            pass gathers within the node (ZeRO++ hpZ, stage 3, `tensor` 1); 1: none.
        sequence_parallel: Split the tokens between tensor-parallel ranks where layers are not split
            (norms, dropout, residuals): less memory for the same communication.
        bind_cpus: Keep each rank on the CPUs beside its GPU (`pretrain.parallel.affinity`).
    """

    tensor: int = 1
    data: int = 1
    zero_stage: ZeroStageChoice = 3
    offload: Offload = "none"
    hpz_partition_size: int = 1
    sequence_parallel: bool = False
    bind_cpus: bool = True


@dataclass
class LossConfig:
    """Weights of the loss (WorldVLA: image codes 0.04, z-loss 1e-5).

    Attributes:
        image_weight: Of image codes; all other labels weigh 1.
        z_loss: Of the mean squared log-sum-exp.
        action_l1: Of the mean absolute error of the continuous action head in normalised units (RynnVLA-002:
            10); without `model.action_head` there is no such term.
        tokens_for_actions: Whether the answers of action samples are trained as tokens; false: only the
            action head learns from them, and world samples are trained as tokens as ever.
        reference_compatible: Reproduce four quirks of the published code: the last image code weighs 1; each
            rank divides each micro-batch by its own sums, so that the gradient depends on the layout; weight
            decay acts on norms and biases too; the action head's targets are the centres of the bins.
    """

    image_weight: float = 0.04
    z_loss: float = 1e-5
    action_l1: float = 10.0
    tokens_for_actions: bool = True
    reference_compatible: bool = False


@dataclass
class OptimConfig:
    """The optimiser and its schedule.

    Attributes:
        name: `adamw` or `lion` (one moment instead of two; takes a third to a tenth of AdamW's `lr`, and
            `weight_decay` as many times larger).
        lr: Peak learning rate.
        schedule: `constant`, `cosine` (to `min_lr_ratio`) or `wsd` (warm-up, stable, decay).
        warmup_steps: Linear warm-up from zero.
        warmup_fraction: The same as a share of the schedule's steps, instead of `warmup_steps`; null: not.
        decay_fraction: Last share of the steps in which `wsd` decays linearly.
        min_lr_ratio: Final learning rate of cosine and wsd as a share of the peak.
        betas: Decays of the moments; Lion's authors take (0.9, 0.99).
        eps: AdamW epsilon.
        weight_decay: On matrices; none on norms and biases (as the published code, on all of them, with
            `loss.reference_compatible`).
        gradient_clipping: Largest global gradient norm; 0: not limited.
        ema: Decay, above 0 and below 1, of an exponential moving average of the weights; its warm-up is in
            `pretrain.parallel.weight_average`. Checkpoints hold it beside the weights; evaluation, serving
            and export take it (`weights=auto`). null: there is none.
    """

    name: OptimizerName = field(
        default="adamw",
        metadata={
            "refused": {
                "muon": "Muon needs whole matrices, which ZeRO and tensor parallelism cut, and DeepSpeed's "
                "changes its momentum before a bad step is known; set it to one of them"
            }
        },
    )
    lr: float = 5e-6
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    warmup_fraction: float | None = None
    decay_fraction: float = 0.2
    min_lr_ratio: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    gradient_clipping: float = 4.0
    ema: float | None = None


@dataclass
class CheckpointingConfig:
    """When checkpoints are written and what a run starts from.

    Attributes:
        every: Steps between checkpoints; the last step always gets one.
        start_from: Checkpoint whose weights a new run starts from, at step 0 and with zero moments (made
            by `worldvla convert import`, or of another run); null: random weights.
        resume: What the first start of the run begins with; later ones go on from the run's own newest
            checkpoint. `auto`: the newest committed checkpoint of the run, if any; `none`: nothing, refused
            where there are checkpoints already; or path or URL of one checkpoint.
        url: Folder or object-store prefix (`s3://bucket/prefix`) for the checkpoints; null: `checkpoints/` of
            the run folder.
        keep_last: Newest committed checkpoints to keep; null keeps all.
        keep_every: Checkpoints of multiples of this step are kept as well; null: not.
        keep_best: Checkpoints with the highest success rates in their evaluations that are kept as well.
        await_evaluation: Checkpoints of multiples of this step are kept until their evaluation has
            written results; 0: no wait. `worldvla train` sets it to `eval.every`.
        attempts: Tries to write a checkpoint before the training ends with an error; an older checkpoint is
            not touched by a failure.
        retry_seconds: Wait before the second try, doubled before each further one.
    """

    every: int = 1000
    start_from: str | None = None
    resume: str = "auto"
    url: str | None = None
    keep_last: int | None = None
    keep_every: int | None = None
    keep_best: int = 0
    await_evaluation: int = 0
    attempts: int = 3
    retry_seconds: float = 5.0


@dataclass
class GuardConfig:
    """Handling of bad steps.

    Attributes:
        spike: A loss this many standard deviations above the mean of the recent ones is a spike; null: no
            loss is. A loss or gradient norm that is not finite always is a bad step.
        memory: Steps that the running mean and deviation of the loss cover (their decay); no loss is a
            spike before that many.
        bad_steps: Consecutive bad steps after which the run rolls back to its newest checkpoint and skips the
            batches that led there. Fewer are skipped one by one, without an update of the weights.
        rollbacks: Times that a run may roll back before it ends with an error.
        step_timeout: Seconds without a finished step after which the stacks of every rank are written to its
            log and the process ends, so that a supervisor restarts it; 0: never.
    """

    spike: float | None = None
    memory: int = 100
    bad_steps: int = 5
    rollbacks: int = 2
    step_timeout: float = 1800.0


@dataclass
class ValidationConfig:
    """Loss on episodes that are not trained on.

    Attributes:
        every: Steps between validations; 0: none.
        batches: Global batches of each split; the same ones every time.
        splits: Splits of the data set; one without episodes is left out with a line that says so.
    """

    every: int = 0
    batches: int = 8
    splits: list[str] = field(default_factory=lambda: ["val_ind", "val_ood"])


@dataclass
class TelemetryConfig:
    """Where numbers go besides `metrics.jsonl`.

    Attributes:
        wandb: `auto` (online when a key is found, else offline), `online`, `offline`, `disabled`.
        project: W&B project.
        profile: Write a torch profiler trace of some steps of rank 0 to `profile/` of the run folder
            (`profile=true` on the command line is short for it).
        profile_steps: Steps to trace, counted from the start of the process (the first is 1).
    """

    wandb: WandbMode = "auto"
    project: str = "worldvla"
    profile: bool = False
    profile_steps: list[int] = field(default_factory=lambda: [4, 5])


@dataclass
class TrainingConfig:
    """All settings of a training process."""

    run: RunConfig = field(default_factory=RunConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)


def trained_decoders(config: TrainingConfig) -> tuple[Decoder, ...]:
    """By which ways the policy of a training can decide on actions; none without action samples.

    Raises:
        InputError: `data.mixture` is invalid.
    """
    if action_share(config.data.mixture) == 0:
        return ()
    discrete: tuple[Decoder, ...] = ("discrete",) if config.loss.tokens_for_actions else ()
    untrained = config.model.action_head is None or config.loss.action_l1 == 0
    continuous: tuple[Decoder, ...] = () if untrained else ("continuous",)
    return discrete + continuous


@dataclass
class VqConfig(SourceConfig):
    """Settings of `worldvla vq`.

    Attributes:
        out: File to write; its name ends in `.safetensors`.
        steps: Optimiser steps.
        batch_size: Frames a step.
        lr: Peak learning rate (linear warm-up, cosine to zero).
        seed: Of initial weights, batches and held-out demonstrations.
        held_out: Share of each task's demonstrations kept for the reported PSNR; at least one.
        frames: Most frames taken of one demonstration and camera, evenly spaced.
        foreground: Largest extra weight of an unusual pixel.
        precision: `bf16` (autocast; quick where the processor has bf16 matrix units) or `fp32`.
        pixels: Side that frames are resized to.
        codebook_size: Entries of the codebook.
        embedding_size: Width of a codebook entry.
        latent_channels: Channels between encoder and codebook.
        base_channels: Channels at full resolution.
        channel_multiplier: Channels of each resolution, as multiples of `base_channels`; each further
            entry halves the side.
        residual_blocks: Residual blocks at each resolution of the encoder (one more in the decoder).
        norm_groups: Groups of the group normalisation.
    """

    out: str = "???"
    steps: int = 2000
    batch_size: int = 16
    lr: float = 2e-3
    seed: int = 0
    held_out: float = 0.1
    frames: int = 32
    foreground: float = 30.0
    precision: Precision = "bf16"
    pixels: int = 64
    codebook_size: int = 1024
    embedding_size: int = 8
    latent_channels: int = 96
    base_channels: int = 16
    channel_multiplier: list[int] = field(default_factory=lambda: [1, 2, 4, 6])
    residual_blocks: int = 1
    norm_groups: int = 8
