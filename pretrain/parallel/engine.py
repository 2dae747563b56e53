"""The training step over the mesh."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.contracts import PackedBatch
from pretrain.checks import PRECISIONS, check_hardware, check_training
from pretrain.config import TrainingConfig
from pretrain.model.loss import LabelKind, LossSettings, label_weights
from pretrain.model.transformer import Transformer
from pretrain.optim import parameter_groups
from pretrain.parallel.batch import MicroBatch, check_batch
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.zero import build_module, start_engine


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
        self._dtype = PRECISIONS[config.trainer.precision]
        self._sequence_parallel = config.parallel.sequence_parallel

    @classmethod
    def build(cls, config: TrainingConfig, groups: ProcessGroups, draw: bool = True) -> Engine:
        """Build, partition and initialise the model.

        Args:
            config: Of the training.
            groups: This rank's groups.
            draw: Whether to draw initial weights; false where a checkpoint is loaded into the engine next.

        Raises:
            InputError: Settings that do not fit the layout or the hardware.
        """
        check_training(config)
        check_hardware(config, groups.device)
        module = build_module(config, groups, draw)
        optimizer = torch.optim.AdamW(
            parameter_groups(module.named_parameters(), config.optim.weight_decay),
            lr=config.optim.lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
            # ZeRO gives it flat tensors, so that any fused kernel is bound by memory; this needs no build.
            fused=groups.device.type == "cuda",
        )
        return cls(module, optimizer, start_engine(module, optimizer, config, groups), config, groups)

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
        batches = [MicroBatch.of(batch, self.module.config, device, self._dtype) for batch in micro_batches]
        normalisers = self._normalisers([batch.labels for batch in batches])
        totals = torch.zeros(1 + 3 * len(LabelKind), device=device)
        self.module.train()
        for number, (batch, normaliser) in enumerate(zip(batches, normalisers, strict=True)):
            self.deepspeed_engine.set_gradient_accumulation_boundary(number + 1 == len(batches))
            self._seed_dropout(number)
            loss, sums = self.deepspeed_engine(
                batch.tokens,
                batch.positions,
                batch.mask,
                batch.labelled,
                batch.labels,
                normaliser,
                self._settings,
            )
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
        Where nothing weighs anything the sums are 0 as well; they are divided by 1 then.

        Args:
            labels: Ids [N] of each micro-batch of this rank.
        """
        local = torch.stack([_weight_and_count(part, self._settings) for part in labels])
        if self._settings.reference_compatible:
            return list(_not_zero(local) * (len(labels) * self.groups.mesh.data))
        step = local.sum(0)
        dist.all_reduce(step, group=self.groups.data)
        return [_not_zero(step)] * len(labels)

    def _seed_dropout(self, micro_batch: int) -> None:
        """Dropout depends on (seed, step, micro-batch, rank), not on what ran before.

        Tensor-parallel peers hold the same activations and so drop the same ones; with sequence
        parallelism each holds other tokens and draws its own.
        """
        name = f"{self._seed}/{self.step_count}/{micro_batch}/{self.groups.data_rank}"
        if self._sequence_parallel:
            name += f"/{self.groups.tensor_rank}"
        digest = hashlib.sha256(name.encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def _weight_and_count(labels: Tensor, settings: LossSettings) -> Tensor:
    weights = label_weights(labels, settings)
    return torch.stack([weights.sum(), torch.ones_like(weights).sum()])


def _not_zero(divisors: Tensor) -> Tensor:
    # Not a tiny number: what the gradient is divided by it overflows, and infinity x 0 is NaN.
    return divisors.masked_fill(divisors == 0, 1.0)
