"""The cells of the grid: what is trained, how long, and in which folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks import demo_runs
from benchmarks.learning.settings import Equal, StudySettings, TaskSettings, VariantSettings
from benchmarks.learning.token_budget import StepContent, step_content, steps_for
from data.errors import InputError
from data.stream.order.mixture import action_share
from pretrain.config import TrainingConfig
from pretrain.main import TorchrunConfig
from pretrain.settings import compose

TOKENIZER = "tokenizer.safetensors"


@dataclass(frozen=True)
class Cell:
    """Trainings that differ in their seed alone.

    Attributes:
        settings: The study.
        work: Its working folder.
        task: Of the trainings.
        variant: Of the trainings.
        chunk: K.
        reference: The cell whose steps the task gives; None: it is this one.
    """

    settings: StudySettings
    work: Path
    task: TaskSettings
    variant: VariantSettings
    chunk: int
    reference: Cell | None

    @property
    def name(self) -> str:
        """Of its runs, without the seed."""
        return f"{self.variant.name}_k{self.chunk}"

    @property
    def equal(self) -> Equal:
        """What it has as much of as the reference variant."""
        return self.variant.equal or self.settings.equal

    @property
    def shards(self) -> Path:
        """Folder of the prepared data."""
        return self.work / self.task.name / "shards"

    @cached_property
    def config(self) -> TrainingConfig:
        """Its settings, with the requested length and number of sequences and without steps.

        Raises:
            InputError: Settings that the training would refuse.
        """
        filled_in = ["run.name=study", f"data.url={self.shards}"]
        filled_in.append(f"trainer.sequence_length={self.task.sequence_length}")
        filled_in.append(f"trainer.global_batch={self.task.global_batch}")
        title = f"variant {self.variant.name} of {self.task.name}"
        return compose(title, TorchrunConfig, "train", [*self._words, *filled_in])

    @property
    def imagines(self) -> bool:
        """Whether it trains a world model."""
        return action_share(self.config.data.mixture) < 1

    @cached_property
    def content(self) -> StepContent:
        """What one step holds.

        Raises:
            InputError: The prepared data are missing, or a sequence cannot hold their samples.
        """
        return step_content(self.config, self.reference.content.tokens if self.reference else None)

    @cached_property
    def steps(self) -> int:
        """Optimiser steps; raises as `content`."""
        task, first = self.task, self.reference or self
        steps = task.steps if task.tokens is None else steps_for(task.tokens, first.content, "tokens")
        return (
            steps
            if first is self
            else steps_for(steps * first.content.amount(self.equal), self.content, self.equal)
        )

    @property
    def checkpoint_every(self) -> int:
        """Steps between two checkpoints.

        Raises:
            InputError: So few steps do not give as many checkpoints.
        """
        number = self.settings.checkpoints
        every = -(-self.steps // number)
        if (number - 1) * every >= self.steps:
            raise InputError(
                f"{self.name} of {self.task.name} takes {self.steps} steps, too few for "
                f"checkpoints={number}; set {-(-self.steps // every)}, or more steps"
            )
        return every

    def run(self, seed: int) -> Path:
        """Folder of a training."""
        return self.work / self.task.name / "runs" / f"{self.name}_s{seed}"

    def checkpoint_step(self, number: int) -> int:
        """The step of a checkpoint, counted from 1."""
        return min(number * self.checkpoint_every, self.steps)

    def checkpoint(self, seed: int, number: int) -> Path:
        """A checkpoint, counted from 1."""
        return demo_runs.checkpoint_of(self.run(seed), self.checkpoint_step(number))

    def train_words(self, seed: int) -> tuple[str, ...]:
        """Arguments of Python for a training."""
        return demo_runs.training(
            self.run(seed),
            self.shards,
            self.steps,
            seed,
            *self._words,
            f"trainer.sequence_length={self.content.length}",
            f"trainer.global_batch={self.content.sequences}",
            f"checkpointing.every={self.checkpoint_every}",
            f"validation.every={-(-self.steps // self.settings.validations)}",
            f"validation.batches={self.settings.validation_batches}",
            "validation.splits=[val_ind]",
        )

    @property
    def _words(self) -> list[str]:
        tokenizer = self.work / self.task.name / "tokenizer" / TOKENIZER
        trained = self.task.image_tokenizer == "trained"
        return [
            *self.settings.settings,
            *self.task.settings,
            *(word.replace("{chunk}", str(self.chunk)) for word in self.variant.settings),
            f"data.chunk={self.chunk}",
            f"data.cameras=[{','.join(self.task.cameras)}]",
            "data.split=train",
            *([f"data.image_tokenizer={tokenizer}"] if trained else []),
        ]


def cells(settings: StudySettings, work: Path) -> Iterator[Cell]:
    """All cells of the grid, task by task."""
    for task in settings.tasks:
        variant = settings.variant(settings.reference)
        first = Cell(settings, work, task, variant, settings.reference_chunk, reference=None)
        for variant in settings.variants:
            for chunk in settings.chunks_of(variant):
                cell = Cell(settings, work, task, variant, chunk, reference=first)
                yield first if cell.name == first.name else cell
