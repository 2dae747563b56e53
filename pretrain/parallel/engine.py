"""The training step over the mesh."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.contracts import PackedBatch
from pretrain.config import TrainingConfig
from pretrain.model.loss import SUMS_SHAPE, LossSettings, label_weights
from pretrain.model.transformer import Transformer
from pretrain.optim import build_optimizer
from pretrain.parallel.batch import MicroBatch, check_batch
from pretrain.parallel.gate import Judge, UpdateGate
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.precision import PRECISIONS
from pretrain.parallel.zero import build_module, gradient_norm_of, start_engine
from pretrain.phases import phase


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimiser step gave; the same on every rank.

    Attributes:
        loss: Scalar fp32, loss of the whole global batch.
        sums: fp32 [3, 4] over the global batch, as `pretrain.model.loss.LossTerms`.
        gradient_norm: Scalar fp32, global norm before clipping; infinite where it is not finite.
        skipped: Scalar bool, whether the update was left out: nothing but the count of steps has changed.
    """

    loss: Tensor
    sums: Tensor
    gradient_norm: Tensor
    skipped: Tensor


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What forward passes over one global batch gave; the same on every rank.

    Attributes:
        loss: Scalar fp32, loss of the whole global batch as in training.
        sums: fp32 [3, 4] over the global batch, as `pretrain.model.loss.LossTerms`.
    """

    loss: Tensor
    sums: Tensor


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
        self.gradient_clipping = config.optim.gradient_clipping
        self._gate = UpdateGate(optimizer, gradient_norm_of(deepspeed_engine), groups.device)
        self._seed = config.trainer.seed
        self._settings = LossSettings(**asdict(config.loss))
        self._dtype = PRECISIONS[config.trainer.precision]
        self._sequence_parallel = config.parallel.sequence_parallel

    @classmethod
    def build(cls, config: TrainingConfig, groups: ProcessGroups, draw: bool = True) -> Engine:
        """Build, partition and initialise the model.

        The settings are taken as they are: `pretrain.checks` refuses those that train wrongly.

        Args:
            config: Of the training.
            groups: This rank's groups.
            draw: Whether to draw initial weights; false where a checkpoint is loaded into the engine next.
        """
        module = build_module(config, groups, draw)
        published = config.loss.reference_compatible
        optimizer = build_optimizer(module.named_parameters(), config.optim, decay_all=published)
        return cls(module, optimizer, start_engine(module, optimizer, config, groups), config, groups)

    def step(
        self, micro_batches: Sequence[PackedBatch], learning_rate: float, judge: Judge | None = None
    ) -> StepResult:
        """One optimiser step over this rank's micro-batches of a global batch.

        An update whose loss or gradient norm is not finite is left out: weights, moments and the optimiser's
        own count stay what they were on all ranks, bit for bit; `step_count` counts on.

        Args:
            micro_batches: Of this rank.
            learning_rate: Of this step.
            judge: Leaves out more. Called once, after the last backward pass and before any weight changes,
                with the loss of the whole global batch and the gradient norm before clipping (scalars fp32 on
                the device); gives a scalar bool on the device, True for an update to leave out. It is to
                decide the same on every rank; one that says True decides for all.

        Raises:
            InputError: A token id or a position that the model does not have.
        """
        batches = self._on_device(micro_batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        normalisers = self._normalisers([batch.labels for batch in batches])
        totals = torch.zeros(1 + math.prod(SUMS_SHAPE), device=self.groups.device)
        self.module.train()
        for number, (batch, normaliser) in enumerate(zip(batches, normalisers, strict=True)):
            self.deepspeed_engine.set_gradient_accumulation_boundary(number + 1 == len(batches))
            self._seed_dropout(number)
            loss, sums = self._forward(batch, normaliser)
            # DeepSpeed averages over data-parallel ranks; parts of the normalised loss add up instead.
            with phase("backward"):
                self.deepspeed_engine.backward(loss * self.groups.mesh.data, scale_wrt_gas=False)
            totals += torch.cat([loss.detach().reshape(1), sums.reshape(-1)])
        dist.all_reduce(totals, group=self.groups.data)
        with phase("optimizer"):
            self._gate.begin(totals[0], judge)
            self.deepspeed_engine.step()
            norm, skipped = self._gate.end()
        self.step_count += 1
        sums = totals[1:].reshape(SUMS_SHAPE)
        return StepResult(loss=totals[0], sums=sums, gradient_norm=norm, skipped=skipped)

    def count_back(self, step: int) -> None:
        """Have done `step` steps only: the updates since were left out, so all else is as it was then."""
        self.step_count = step

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[PackedBatch]) -> Evaluation:
        """Forward passes alone over this rank's micro-batches of a global batch, without dropout.

        Every rank calls it. Weights, optimiser, step count and random numbers stay as they are.

        Raises:
            InputError: A token id or a position that the model does not have.
        """
        batches = self._on_device(micro_batches)
        normalisers = self._normalisers([batch.labels for batch in batches])
        totals = torch.zeros(1 + math.prod(SUMS_SHAPE), device=self.groups.device)
        training = self.module.training
        self.module.eval()
        for batch, normaliser in zip(batches, normalisers, strict=True):
            loss, sums = self._forward(batch, normaliser)
            totals += torch.cat([loss.reshape(1), sums.reshape(-1)])
        self.module.train(training)
        dist.all_reduce(totals, group=self.groups.data)
        return Evaluation(loss=totals[0], sums=totals[1:].reshape(SUMS_SHAPE))

    def _on_device(self, micro_batches: Sequence[PackedBatch]) -> list[MicroBatch]:
        for batch in micro_batches:
            check_batch(batch, self.module.config)
        model, device = self.module.config, self.groups.device
        return [MicroBatch.of(batch, model, device, self._dtype) for batch in micro_batches]

    def _forward(self, batch: MicroBatch, normaliser: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and sums of a micro-batch, as `pretrain.model.loss.LossTerms`."""
        with phase("forward"):
            return self.deepspeed_engine(
                batch.tokens,
                batch.positions,
                batch.mask,
                batch.labelled,
                batch.labels,
                normaliser,
                self._settings,
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
