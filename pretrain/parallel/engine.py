"""The DeepSpeed ZeRO engine over the mesh: the one place that drives DeepSpeed in training.

`deepspeed.zero.Init` is not used: the model is built and initialised by name, then partitioned.
Combinations that DeepSpeed trains wrongly without an error are refused here or cannot be asked for:
`zero.Init` without a data-parallel group, unmarked sharded parameters (`TensorParallelFactory` marks
them), ZeRO++ partitions across tensor-parallel peers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data.contracts import PackedBatch
from data.errors import InputError
from data.tokens.vocabulary import IGNORED_LABEL
from pretrain.config import TrainingConfig
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.factory import LayerFactory
from pretrain.model.loss import LabelKind, LossSettings, label_weights
from pretrain.model.transformer import Transformer, check_divides, initialise
from pretrain.optim import parameter_groups
from pretrain.parallel.groups import ModelParallelUnit, ProcessGroups

PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimiser step gave; the same on every rank.

    Attributes:
        loss: Scalar fp32, loss of the whole global batch.
        sums: fp32 [3, 3] over the global batch, as `pretrain.model.loss.LossTerms`.
        gradient_norm: Global norm before clipping.
    """

    loss: Tensor
    sums: Tensor
    gradient_norm: Tensor


class Engine:
    """A partitioned model with its optimiser."""

    def __init__(
        self,
        module: Transformer,
        optimizer: torch.optim.Optimizer,
        deepspeed_engine: Any,
        config: TrainingConfig,
        groups: ProcessGroups,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.deepspeed_engine = deepspeed_engine
        self.groups = groups
        self.step_count = 0
        self._seed = config.trainer.seed
        self._settings = LossSettings(**asdict(config.loss))

    @classmethod
    def build(cls, config: TrainingConfig, groups: ProcessGroups) -> Engine:
        """Build, initialise and partition the model.

        Raises:
            InputError: Settings that do not fit the layout or that DeepSpeed would train wrongly.
        """
        check_settings(config)
        if groups.mesh.tensor > 1:
            # Imported late: megatron takes seconds, and other layouts do without it.
            from pretrain.parallel.tensor_parallel import TensorParallelFactory

            factory: LayerFactory = TensorParallelFactory(groups)
        else:
            factory = LayerFactory()
        module = Transformer(config.model, factory)
        initialise(module, config.trainer.seed, factory.rank, factory.size)
        optimizer = torch.optim.AdamW(
            parameter_groups(module.named_parameters(), config.optim.weight_decay),
            lr=config.optim.lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
            fused=groups.device.type == "cuda",
        )
        if groups.device.type == "cpu":
            _skip_kernel_build()
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=_deepspeed_settings(config, groups),
            mpu=ModelParallelUnit(groups) if groups.tensor is not None else None,
        )
        return cls(module, optimizer, engine, config, groups)

    def step(self, micro_batches: Sequence[PackedBatch], learning_rate: float) -> StepResult:
        """One optimiser step over this rank's micro-batches of a global batch.

        Raises:
            InputError: A token id or a position that the model does not have.
        """
        for batch in micro_batches:
            check_batch(batch, self.module.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        device, data_size = self.groups.device, self.groups.mesh.data
        batches = [_on_device(batch, self.module.config, device) for batch in micro_batches]
        normalisers = self._normalisers([labels for _, _, labels in batches])
        totals = torch.zeros(1 + 3 * len(LabelKind), device=device)
        self.module.train()
        for number, (inputs, labelled, labels) in enumerate(batches):
            self.deepspeed_engine.set_gradient_accumulation_boundary(number + 1 == len(batches))
            self._seed_dropout(number)
            loss, sums = self.deepspeed_engine(*inputs, labelled, labels, normalisers[number], self._settings)
            # DeepSpeed averages over data-parallel ranks; parts of the normalised loss add up instead.
            self.deepspeed_engine.backward(loss * data_size, scale_wrt_gas=False)
            totals += torch.cat([loss.detach().reshape(1), sums.reshape(-1)])
        self.deepspeed_engine.step()
        self.step_count += 1
        dist.all_reduce(totals, group=self.groups.data)
        norm = self.deepspeed_engine.get_global_grad_norm()
        return StepResult(
            loss=totals[0],
            sums=totals[1:].reshape(len(LabelKind), 3),
            gradient_norm=torch.as_tensor(norm, dtype=torch.float32),
        )

    def _normalisers(self, labels: Sequence[Tensor]) -> list[Tensor]:
        """What each micro-batch divides by, fp32 [2]: sum of label weights and number of labels.

        By default those of the whole step, so that the loss does not depend on the layout. The published
        code takes each micro-batch's own, and averages over micro-batches and data-parallel ranks.

        Args:
            labels: Ids [N] of each micro-batch of this rank.
        """
        local = torch.stack([_weight_and_count(part, self._settings) for part in labels])
        if self._settings.reference_compatible:
            own = local.clamp_min(torch.finfo(torch.float32).tiny)  # without labels: 0 / tiny, not 0 / 0
            return list(own * (len(labels) * self.groups.mesh.data))
        step = local.sum(0)
        dist.all_reduce(step, group=self.groups.data)
        return [step] * len(labels)

    def _seed_dropout(self, micro_batch: int) -> None:
        """Dropout depends on (seed, step, micro-batch, data-parallel rank), not on what ran before.

        Tensor-parallel peers hold the same activations and so drop the same ones.
        """
        name = f"{self._seed}/{self.step_count}/{micro_batch}/{self.groups.data_rank}"
        digest = hashlib.sha256(name.encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def _weight_and_count(labels: Tensor, settings: LossSettings) -> Tensor:
    weights = label_weights(labels, settings)
    return torch.stack([weights.sum(), torch.ones_like(weights).sum()])


def check_settings(config: TrainingConfig) -> None:
    """Check what can be known before anything is built.

    Raises:
        InputError: With both numbers and what to change.
    """
    check_divides(config.model, config.parallel.tensor)
    if config.parallel.zero_stage not in (1, 2, 3):
        raise InputError(f"parallel.zero_stage={config.parallel.zero_stage}, expected 1, 2 or 3")
    if config.trainer.precision not in PRECISIONS:
        raise InputError(
            f"trainer.precision={config.trainer.precision!r}, expected one of {', '.join(PRECISIONS)}"
        )
    if config.trainer.global_batch % config.parallel.data:
        raise InputError(
            f"trainer.global_batch={config.trainer.global_batch} does not divide by "
            f"parallel.data={config.parallel.data}; change one of them"
        )


def check_batch(batch: PackedBatch, model: ModelConfig) -> None:
    """Check that the model knows every token and position.

    On a GPU they end in a device assertion, and a vocabulary that is shared out takes an unknown id for
    a zero vector without an error.

    Raises:
        InputError: Names the largest id or the longest sample.
    """
    largest = max(int(batch.tokens.max()), int(batch.labels.max()))
    if largest >= model.vocabulary_size:
        raise InputError(
            f"token id {largest} in the data, but model.vocabulary_size is {model.vocabulary_size}; "
            f"raise it to at least {largest + 1} or prepare the data with another text tokenizer"
        )
    longest = int(batch.positions.max()) + 1
    if longest > model.max_positions:
        raise InputError(
            f"a sample of {longest} tokens, but model.max_positions is {model.max_positions}; "
            f"raise it to at least {longest}"
        )


def _deepspeed_settings(config: TrainingConfig, groups: ProcessGroups) -> dict[str, Any]:
    share = config.trainer.global_batch // groups.mesh.data
    return {
        # Accumulation is told step by step (set_gradient_accumulation_boundary); DeepSpeed's own
        # count is only checked for consistency.
        "train_batch_size": share * groups.mesh.data,
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.gradient_clipping,
        "bf16": {"enabled": config.trainer.precision == "bf16"},
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "overlap_comm": groups.device.type == "cuda",
            "contiguous_gradients": True,
            "reduce_bucket_size": 200_000_000,
            "stage3_prefetch_bucket_size": 100_000_000,
            # Every matrix is partitioned; norms, the only parameters this small, stay whole.
            "stage3_param_persistence_threshold": config.model.hidden_size,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
    }


def _skip_kernel_build() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives, 90 s for tests on one machine."""
    from deepspeed.ops import __compatible_ops__ as compatible

    compatible["deepspeed_shm_comm"] = False


def _on_device(
    batch: PackedBatch, model: ModelConfig, device: torch.device
) -> tuple[tuple[Any, ...], Tensor, Tensor]:
    """A micro-batch on the device: model inputs, indices of labelled positions, labels.

    The indices are found on the host, where the labels are: no waiting for the device.
    """
    flat = batch.labels.reshape(-1)
    labelled = np.flatnonzero(flat != IGNORED_LABEL)

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(device, non_blocking=True)

    mask = packed_mask(batch.segments, batch.blocks, model, device)
    return (move(batch.tokens), move(batch.positions), mask), move(labelled), move(flat[labelled])
