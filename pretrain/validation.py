"""Loss and accuracy on episodes that are not trained on, beside the training.

Every validation takes the same batches, in every run on a data set with the same shape of batches: their
order has a seed of its own. Numbers are means over all labels of these batches, added up before they are
divided, so that they do not depend on the layout.
"""

from __future__ import annotations

import sys
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
from pretrain.model.loss import SUMS_SHAPE, LabelKind, Total, means

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

SEED = 0  # of the order of validation batches, whatever the training's is


class Validation:
    """The validation batches of a training; every rank makes one and calls it at the same steps.

    Each split is opened once; of its episodes as many stay in memory as of those that are trained on
    (`data.stream.episodes.CACHE_BYTES`). Use as a context manager, or call `close`, to end its threads.

    Args:
        config: Of the training.
        groups: This rank's groups.

    Raises:
        InputError: Settings that cannot be, an unknown split, samples that the model is too small for or
            of which a split holds no window.
    """

    def __init__(self, config: TrainingConfig, groups: ProcessGroups) -> None:
        _check_settings(config)
        self._every, self._batches = config.validation.every, config.validation.batches
        self._last = config.trainer.steps
        self._image_weight = config.loss.image_weight
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
                    print(
                        f"validation: the data has no episode in split {split}; it is left out",
                        file=sys.stderr,
                        flush=True,
                    )
        except BaseException:
            self.close()
            raise

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that are measured."""
        return tuple(self._streams)

    def due(self, step: int) -> bool:
        """Whether to measure after optimiser step `step` (from 1): every so many, and after the last."""
        return bool(self._streams) and (step % self._every == 0 or step == self._last)

    def measure(self, engine: Engine) -> dict[str, float | None]:
        """Forward passes over all batches; every rank calls it and gets the same.

        Weights, optimiser and random numbers stay as they are.

        Returns:
            Of each split `<split>/loss` (cross entropy, kinds weighted as in training, without z-loss), and
            `loss_<kind>`, `accuracy_<kind>` and `action_l1` as `pretrain.model.loss.means` has them.

        Raises:
            InputError: A shard is missing or broken.
        """
        totals = {split: self._sums(engine, stream) for split, stream in self._streams.items()}
        found: dict[str, float | None] = {}
        for split, sums in totals.items():  # the device is waited for when all its work is queued
            values = {"loss": weighted_loss(sums.tolist(), self._image_weight), **means(sums.tolist())}
            found |= {f"{split}/{name}": value for name, value in values.items()}
        return found

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
        # Tells at once, and not at the first validation, where the layout does not fit.
        stream.plan.share(self._groups.data_rank, self._groups.mesh.data)

    def _sums(self, engine: Engine, stream: TokenStream) -> Tensor:
        """Fp64 [3, 4]: `LossTerms.sums` over all batches of a split."""
        total = torch.zeros(SUMS_SHAPE, dtype=torch.float64, device=self._groups.device)
        for number in range(self._batches):
            batches = stream.micro_batches(number, self._groups.data_rank, self._groups.mesh.data)
            total += engine.evaluate(batches).sums
        return total


def weighted_loss(sums: Sequence[Sequence[float]], image_weight: float) -> float | None:
    """Cross entropy with image codes weighted as in training; None where nothing weighs anything.

    Args:
        sums: `LossTerms.sums` as numbers.
        image_weight: Of image codes; all other labels weigh 1.
    """
    weights = [image_weight if kind == LabelKind.IMAGE else 1.0 for kind in LabelKind]
    entropy = sum(w * row[Total.CROSS_ENTROPY] for w, row in zip(weights, sums, strict=True))
    labels = sum(w * row[Total.LABELS] for w, row in zip(weights, sums, strict=True))
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
