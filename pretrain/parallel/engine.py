"""The training step on the grid of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.contracts import PackedBatch
from pretrain.config import TrainingConfig
from pretrain.model.loss import LossSettings, label_weights, sums_shape
from pretrain.model.seeds import seed_generators, seed_of
from pretrain.model.transformer import Transformer
from pretrain.optim import build_optimizer
from pretrain.parallel.batch import MicroBatch, check_batch
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.masters import fp32_masters
from pretrain.parallel.update_skipping import SkipRule, UpdateSkipper
from pretrain.parallel.weight_average import WeightAverage
from pretrain.parallel.zero import build_module, gradient_norm_of, start_engine
from pretrain.phases import phase
from pretrain.precision import PRECISIONS
from pretrain.sources import told_apart


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of one optimiser step; the same on every rank.

    Attributes:
        loss: Scalar fp32, loss of the whole global batch.
        sums: fp32 [4 + M, 4] over the global batch, as `pretrain.model.loss.LossTerms`.
        gradient_norm: Scalar fp32, global norm before clipping; infinite where it is not finite.
        skipped: Scalar bool, whether the update was skipped: nothing but the step count has changed.
    """

    loss: Tensor
    sums: Tensor
    gradient_norm: Tensor
    skipped: Tensor


@dataclass(frozen=True, slots=True)
class EvaluationMetrics:
    """Result of forward passes over one global batch; the same on every rank.

    Attributes:
        loss: Scalar fp32, loss of the whole global batch as in training.
        sums: fp32 [4 + M, 4] over the global batch, as `pretrain.model.loss.LossTerms`.
    """

    loss: Tensor
    sums: Tensor


class Engine:
    """A partitioned model with its optimiser.

    Attributes:
        module: The network, partitioned.
        optimizer: Over its parameters or their fp32 masters.
        deepspeed_engine: Around both.
        average: Of the weights, as `optim.ema` says; None: none.
        groups: Of this rank.
        seed: Of initial weights and dropout.
        step_count: Optimiser steps so far, skipped ones included.
        gradient_clipping: Maximum global gradient norm; 0: unlimited.
    """

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
        self.average: WeightAverage | None = None
        if config.optim.ema is not None:
            self.average = WeightAverage(fp32_masters(deepspeed_engine.optimizer), config.optim.ema)
        self._skipper = UpdateSkipper(optimizer, gradient_norm_of(deepspeed_engine), groups.device)
        self.seed = config.trainer.seed
        self._settings = LossSettings(**asdict(config.loss))
        self._dtype = PRECISIONS[config.trainer.precision]
        self._sequence_parallel = config.parallel.sequence_parallel
        self._sources = told_apart(config.data)
        self._sums_shape = sums_shape(self._sources)
        self._before_change: list[Callable[[], None]] = []

    @classmethod
    def build(cls, config: TrainingConfig, groups: ProcessGroups, initialise: bool = True) -> Engine:
        """Build, partition and initialise the model.

        The settings are taken as they are: `pretrain.checks` refuses those that train wrongly.

        Args:
            config: Of the training.
            groups: This rank's groups.
            initialise: Whether to draw initial weights; false where a checkpoint is loaded next.
        """
        module = build_module(config, groups, initialise)
        decay_all = config.loss.reference_compatible
        optimizer = build_optimizer(module.named_parameters(), config.optim, decay_all)
        return cls(module, optimizer, start_engine(module, optimizer, config, groups), config, groups)

    def step(
        self, micro_batches: Sequence[PackedBatch], learning_rate: float, skip_rule: SkipRule | None = None
    ) -> StepResult:
        """Take one optimiser step over this rank's micro-batches of a global batch.

        An update whose loss or gradient norm is not finite is skipped: weights, moments, the weights' average
        and the optimiser's own count stay the same on all ranks, bit for bit; `step_count` increases.

        Args:
            micro_batches: Of this rank.
            learning_rate: Of this step.
            skip_rule: Skips further updates. Called once, after the last backward pass and before any weight
                changes, with the loss of the whole global batch and the gradient norm before clipping
                (scalars fp32 on the device); returns a scalar bool on the device, True to skip the update. It
                should decide the same on every rank; True on one rank skips on all.

        Raises:
            InputError: A token id or a position beyond the model's sizes.
        """
        batches = self._on_device(micro_batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        normalisers = self._normalisers(batches)
        totals = torch.zeros(1 + math.prod(self._sums_shape), device=self.groups.device)
        self.module.train()
        for number, (batch, normaliser) in enumerate(zip(batches, normalisers, strict=True)):
            self.deepspeed_engine.set_gradient_accumulation_boundary(number + 1 == len(batches))
            loss, sums = self._forward(self._seed_dropout(number, batch), normaliser)
            # DeepSpeed averages over data-parallel ranks; parts of the normalised loss are to be summed.
            with phase("backward"):
                self.deepspeed_engine.backward(loss * self.groups.mesh.data, scale_wrt_gas=False)
            totals += torch.cat([loss.detach().reshape(1), sums.reshape(-1)])
        dist.all_reduce(totals, group=self.groups.data)
        with phase("optimizer"):
            self.prepare_change()
            self._skipper.start_step(totals[0], skip_rule)
            self.deepspeed_engine.step()
            norm, skipped = self._skipper.finish_step()
            if self.average is not None:
                self.average.follow(skipped)
        self.step_count += 1
        sums = totals[1:].reshape(self._sums_shape)
        return StepResult(loss=totals[0], sums=sums, gradient_norm=norm, skipped=skipped)

    def before_next_change(self, function: Callable[[], None]) -> None:
        """Have a function called once, just before weights, moments or the average change the next time."""
        self._before_change.append(function)

    def prepare_change(self) -> None:
        """Call the functions of `before_next_change`: whoever changes weights or moments calls this first."""
        functions, self._before_change = self._before_change, []
        for function in functions:
            function()

    def rewind_step_count(self, step: int) -> None:
        """Set the step count back to `step`; all updates since were skipped, so nothing else changes."""
        self.step_count = step

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[PackedBatch]) -> EvaluationMetrics:
        """Run forward passes over this rank's micro-batches of a global batch, without dropout.

        Every rank calls it. Weights, optimiser, step count and random states do not change.

        Raises:
            InputError: A token id or a position beyond the model's sizes.
        """
        batches = self._on_device(micro_batches)
        normalisers = self._normalisers(batches)
        totals = torch.zeros(1 + math.prod(self._sums_shape), device=self.groups.device)
        training = self.module.training
        self.module.eval()
        for batch, normaliser in zip(batches, normalisers, strict=True):
            loss, sums = self._forward(batch, normaliser)
            totals += torch.cat([loss.reshape(1), sums.reshape(-1)])
        self.module.train(training)
        dist.all_reduce(totals, group=self.groups.data)
        return EvaluationMetrics(loss=totals[0], sums=totals[1:].reshape(self._sums_shape))

    def _on_device(self, micro_batches: Sequence[PackedBatch]) -> list[MicroBatch]:
        for batch in micro_batches:
            check_batch(batch, self.module.config)
        model, device = self.module.config, self.groups.device
        return [
            MicroBatch.of(batch, model, self._settings, device, self._dtype, self._sources)
            for batch in micro_batches
        ]

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
                batch.actions,
                batch.sources,
            )

    def _normalisers(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Divisors of each micro-batch's loss, fp32 [3].

        They are the sum of the label weights, the number of labels, and that of the action head's targets.

        By default those of the whole step, so that the loss does not depend on the layout. The published
        code takes each micro-batch's own, and averages over micro-batches and data-parallel ranks.
        A divisor of 0 is replaced by 1: the sums are 0 then, too.

        Args:
            batches: The micro-batches of this rank.
        """
        local = torch.stack([_weight_and_counts(batch, self._settings) for batch in batches])
        if self._settings.reference_compatible:
            return list(_zero_to_one(local) * (len(batches) * self.groups.mesh.data))
        step = local.sum(0)
        dist.all_reduce(step, group=self.groups.data)
        return [_zero_to_one(step)] * len(batches)

    def _seed_dropout(self, number: int, batch: MicroBatch) -> MicroBatch:
        """Seed dropout by (seed, step, micro-batch, rank), independently of earlier computation.

        Tensor-parallel peers hold the same activations and so drop the same ones; with sequence parallelism
        each holds other tokens and has its own seed. The action head, which all of them hold whole, has a
        seed that they share.

        Args:
            number: Of the micro-batch in the step.
            batch: The micro-batch.

        Returns:
            The micro-batch with the seed of its action head.
        """
        name = f"{self.seed}/{self.step_count}/{number}/{self.groups.data_rank}"
        own = f"{name}/{self.groups.tensor_rank}" if self._sequence_parallel else name
        seed_generators(seed_of(own), self.groups.device)
        if batch.actions is None:
            return batch
        return replace(batch, actions=replace(batch.actions, dropout_seed=seed_of(f"{name}/action_head")))


def _weight_and_counts(batch: MicroBatch, settings: LossSettings) -> Tensor:
    weights = label_weights(batch.labels, settings)
    targets = batch.actions.values if batch.actions is not None else 0
    return torch.stack([weights.sum(), torch.ones_like(weights).sum(), weights.new_full((), targets)])


def _zero_to_one(divisors: Tensor) -> Tensor:
    # Not a tiny number: gradients divided by it overflow, and infinity x 0 is NaN.
    return divisors.masked_fill(divisors == 0, 1.0)
