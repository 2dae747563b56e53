"""Loss and accuracy on held-out episodes, measured during the training.

Every validation uses the same batches, in all runs with the same data set and shape of batches: their order
has a seed of its own. Results are means over all labels of these batches, summed before they are divided, so
that they do not depend on the layout.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from data.errors import InputError
from data.storage.episode_entry import SPLITS
from data.stream.datasets import available_splits
from data.stream.loader import TokenStream
from pretrain.config import TrainingConfig
from pretrain.model.loss import TOKEN_KINDS, LabelKind, Total, means, sums_shape
from pretrain.phases import phase
from pretrain.sources import told_apart

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.telemetry.recorder import Recorder

SEED = 0  # of the order of validation batches, independent of the training's seed

_LOG = logging.getLogger(__name__)


class Validation:
    """The validation of a training; every rank makes one and calls it at the same steps.

    Each split is opened once and has an episode memory of its own (`data.memory_megabytes`). Use as a context
    manager, or call `close`, to end its threads.

    Args:
        config: Settings of the training.
        groups: Process groups of this rank.

    Raises:
        InputError: Invalid settings, an unknown split, a split whose samples are too large for the model, or
            a split without any window.
    """

    def __init__(self, config: TrainingConfig, groups: ProcessGroups) -> None:
        _check_settings(config)
        self._every, self._batches = config.validation.every, config.validation.batches
        self._last = config.trainer.steps
        self._image_weight = config.loss.image_weight
        self._told_apart = told_apart(config.data)
        self._groups = groups
        self._streams: dict[str, TokenStream] = {}
        if not self._every:
            return
        held = available_splits(config.data)
        try:
            for split in config.validation.splits:
                if split in held:
                    self._open(split, config)
                elif groups.rank == 0:
                    _LOG.warning("the data has no episode in split %s; it is left out", split)
        except BaseException:
            self.close()
            raise

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are measured."""
        return tuple(self._streams)

    def is_due(self, step: int) -> bool:
        """Whether to measure after optimiser step `step` (from 1): every `validation.every`, and the last."""
        return bool(self._streams) and (step % self._every == 0 or step == self._last)

    def run(self, step: int, engine: Engine, recorder: Recorder) -> None:
        """Measure after optimiser step `step`, outside the time of training, and write an event."""
        start = time.perf_counter()
        with phase("validation"), recorder.paused():
            values = self.measure(engine)
        recorder.event("validation", step=step, seconds=time.perf_counter() - start, **values)

    def measure(self, engine: Engine) -> dict[str, float | None]:
        """Evaluate all batches with forward passes; every rank calls this and gets the same values.

        Weights, optimiser and random numbers do not change.

        Returns:
            For each split `<split>/loss` (cross entropy, kinds weighted as in training, without z-loss), and
            `loss_<kind>`, `accuracy_<kind>`, `action_l1` and, of several data sets, `loss_action/<data set>`
            of `pretrain.model.loss.means`.

        Raises:
            InputError: A shard is missing or damaged.
        """
        totals = {split: self._sums(engine, stream) for split, stream in self._streams.items()}
        results: dict[str, float | None] = {}
        for split, sums in totals.items():  # waits for the device once all its work is queued
            rows, names = sums.tolist(), self._names(split)
            values = {"loss": weighted_loss(rows, self._image_weight), **means(rows, names)}
            results |= {f"{split}/{name}": value for name, value in values.items()}
        return results

    def close(self) -> None:
        """End the threads that read batches."""
        for stream in self._streams.values():
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, split: str, config: TrainingConfig) -> None:
        stream = TokenStream(config.data, config.trainer, SEED, split)
        self._streams[split] = stream
        needs = {"vocabulary_size": stream.vocabulary_size, "max_positions": stream.longest_sample}
        _check_model(split, needs, config)
        # Raises now, and not at the first validation, if the layout does not fit.
        stream.plan.share(self._groups.data_rank, self._groups.mesh.data)

    def _names(self, split: str) -> list[str]:
        """Names of the data sets whose action losses are told apart, also of those that the split lacks."""
        return [source.name for source in self._streams[split].sources] if self._told_apart else []

    def _sums(self, engine: Engine, stream: TokenStream) -> Tensor:
        """Fp64 [4 + M, 4]: `LossTerms.sums` over all batches of a split."""
        total = torch.zeros(sums_shape(self._told_apart), dtype=torch.float64, device=self._groups.device)
        for number in range(self._batches):
            batches = stream.micro_batches(number, self._groups.data_rank, self._groups.mesh.data)
            total += engine.evaluate(batches).sums
        return total


def weighted_loss(sums: Sequence[Sequence[float]], image_weight: float) -> float | None:
    """Cross entropy with image codes weighted as in training; None if the weights add up to 0.

    Args:
        sums: `LossTerms.sums` [4 + M, 4] as numbers.
        image_weight: Weight of image codes; all other labels weigh 1.
    """
    weights = {kind: image_weight if kind == LabelKind.IMAGE else 1.0 for kind in TOKEN_KINDS}
    entropy = sum(weight * sums[kind][Total.CROSS_ENTROPY] for kind, weight in weights.items())
    labels = sum(weight * sums[kind][Total.LABELS] for kind, weight in weights.items())
    return entropy / labels if labels else None


def _check_settings(config: TrainingConfig) -> None:
    settings = config.validation
    if settings.every < 0:
        raise InputError(f"validation.every={settings.every}, expected at least 0; 0 is for no validation")
    if settings.batches < 1:
        raise InputError(
            f"validation.batches={settings.batches}, expected at least 1; for no validation set "
            "validation.every=0"
        )
    unknown = [split for split in settings.splits if split not in SPLITS]
    if unknown:
        raise InputError(f"validation.splits has {unknown[0]!r}, expected some of {', '.join(SPLITS)}")
    if len(set(settings.splits)) < len(settings.splits):
        raise InputError(f"validation.splits={settings.splits} names a split twice; name each once")


def _check_model(split: str, needs: Mapping[str, int], config: TrainingConfig) -> None:
    for name, needed in needs.items():
        has = getattr(config.model, name)
        if needed > has:
            raise InputError(
                f"model.{name}={has}, but samples of split {split} need {needed}; raise it, or leave the "
                "split out of validation.splits"
            )
