"""Settings of the study: one YAML file, typed and checked as the project's other settings.

`study.yaml` beside this module has the study of docs/learning.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.errors import InputError
from pretrain.settings import from_mapping, read_yaml

Equal = Literal["tokens", "action_samples"]
TokenizerChoice = Literal["package", "trained"]

DEFAULT_FILE = Path(__file__).with_name("study.yaml")
_NAME_LETTERS = set("abcdefghijklmnopqrstuvwxyz0123456789_")
_FILLED_IN = (  # settings of a training that the study computes itself
    "run",
    "checkpointing",
    "telemetry",
    "validation",
    "data.url",
    "data.chunk",
    "data.cameras",
    "data.split",
    "data.image_tokenizer",
    "trainer.steps",
    "trainer.seed",
    "trainer.global_batch",
    "trainer.sequence_length",
)
_FILLED_IN_DATA = {  # the same of the commands that make the data
    "collect": ("suite", "tasks", "episodes", "displaced", "resolution", "out", "workers", "seed"),
    "vq": ("source", "out", "pixels"),
    "prepare": ("source", "out", "resolution", "image_tokenizer", "workers"),
}


@dataclass
class TaskSettings:
    """A task that all variants are trained on and evaluated on.

    Attributes:
        name: Of its folder, and on the command line.
        title: In tables.
        suite: Task suite of the simulator.
        tasks: Task numbers within the suite; null: all.
        demonstrations: Episodes of the scripted expert of each task; of ten or more the last tenth is held
            out, of fewer none.
        displaced: Probability that a demonstration begins displaced (`eval.config.CollectConfig`).
        resolution: Side of the frames in pixels.
        cameras: Cameras of the policy.
        image_tokenizer: `package`, or `trained` on these demonstrations by `worldvla vq`.
        vq: Further settings of `worldvla vq`.
        collect: Further settings of `worldvla collect`.
        prepare: Further settings of `worldvla prepare`, such as `variants=8` for `data.variants`.
        steps: Optimiser steps of the reference variant, which decide the tokens of all.
        tokens: Trained tokens of every training instead of those of `steps`; null: those.
        sequence_length: Tokens of a sequence; each variant takes a length near it that pads little.
        global_batch: Sequences in a step of the reference variant; each other one takes so many that its
            steps have about as many tokens.
        episodes: Of the evaluation at the end of a training.
        episodes_between: Of those at its earlier checkpoints; 0: none.
        settings: Of all trainings on this task.
    """

    name: str = "???"
    title: str = "???"
    suite: str = "???"
    tasks: list[int] | None = None
    demonstrations: int = 48
    displaced: float = 0.0
    resolution: int = 64
    cameras: list[str] = field(default_factory=lambda: ["wrist"])
    image_tokenizer: TokenizerChoice = "package"
    vq: list[str] = field(default_factory=list[str])
    collect: list[str] = field(default_factory=list[str])
    prepare: list[str] = field(default_factory=list[str])
    steps: int = 1000
    tokens: int | None = None
    sequence_length: int = 320
    global_batch: int = 8
    episodes: int = 50
    episodes_between: int = 0
    settings: list[str] = field(default_factory=list[str])


@dataclass
class VariantSettings:
    """A row of the grid.

    Attributes:
        name: Of its runs, and on the command line.
        title: In tables.
        settings: Of its trainings; `{chunk}` in them is K.
        chunks: K of its trainings; null: the study's.
        equal: What it has as much of as the reference variant; null: as the study.
        paper: Success in WorldVLA's ablation, percent, mean of LIBERO's four suites; null: not in it.
    """

    name: str = "???"
    title: str = "???"
    settings: list[str] = field(default_factory=list[str])
    chunks: list[int] | None = None
    equal: Equal | None = None
    paper: float | None = None


@dataclass
class StudySettings:
    """The study.

    Attributes:
        tasks: Tasks, each with trainings of all variants.
        variants: Rows of the grid.
        chunks: K, lengths of the action chunks.
        seeds: Seeds of the trainings: of initial weights and of the order of the data.
        equal: What the trainings of a task have equally much of: `tokens` (of samples, without padding) or
            `action_samples`.
        reference: Name of the variant whose `steps` the tasks give.
        reference_chunk: Its K.
        checkpoints: Of each training, evenly spaced, the last at its end.
        validations: Of each training, on the held-out demonstrations.
        validation_batches: Global batches of each.
        imagined_frames: Time steps of the world model's rollouts, where world samples are trained.
        imagined_episodes: Held-out demonstrations that they follow.
        settings: Of all trainings.
        jobs: Parts that run at a time, each in one process with one thread.
    """

    tasks: list[TaskSettings] = field(default_factory=list[TaskSettings])
    variants: list[VariantSettings] = field(default_factory=list[VariantSettings])
    chunks: list[int] = field(default_factory=lambda: [5, 10])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    equal: Equal = "tokens"
    reference: str = "chunk_mask"
    reference_chunk: int = 5
    checkpoints: int = 1
    validations: int = 10
    validation_batches: int = 4
    imagined_frames: int = 8
    imagined_episodes: int = 4
    settings: list[str] = field(default_factory=list[str])
    jobs: int = 2

    def task(self, name: str) -> TaskSettings:
        """The task of this name."""
        return next(task for task in self.tasks if task.name == name)

    def variant(self, name: str) -> VariantSettings:
        """The variant of this name."""
        return next(variant for variant in self.variants if variant.name == name)

    def chunks_of(self, variant: VariantSettings) -> list[int]:
        """K of the variant's trainings."""
        return self.chunks if variant.chunks is None else variant.chunks


def read_settings(path: Path) -> StudySettings:
    """Read and check a settings file.

    Raises:
        InputError: It is missing, has an unknown key, a value of a wrong type, or one that cannot be.
    """
    settings = from_mapping(str(path), StudySettings, read_yaml(path))
    try:
        _check(settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return settings


def _check(settings: StudySettings) -> None:
    _check_names("tasks", [task.name for task in settings.tasks])
    _check_names("variants", [variant.name for variant in settings.variants])
    _check_different("seeds", settings.seeds, least=0)
    for key in ("checkpoints", "validations", "validation_batches", "imagined_frames", "imagined_episodes"):
        _check_least(key, getattr(settings, key), 1)
    _check_least("jobs", settings.jobs, 1)
    _check_settings("settings", settings.settings)
    for variant in settings.variants:
        _check_different(f"chunks of {variant.name}", settings.chunks_of(variant), least=1)
        _check_settings(f"settings of {variant.name}", variant.settings)
    for task in settings.tasks:
        for key in ("demonstrations", "steps", "sequence_length", "global_batch", "episodes"):
            _check_least(f"{key} of {task.name}", getattr(task, key), 1)
        _check_least(f"episodes_between of {task.name}", task.episodes_between, 0)
        _check_settings(f"settings of {task.name}", task.settings)
        for command, computed in _FILLED_IN_DATA.items():
            _check_settings(f"{command} of {task.name}", getattr(task, command), computed, command)
        if not 0.0 <= task.displaced <= 1.0:
            raise InputError(f"displaced of {task.name} is {task.displaced}, expected a probability")
        if task.tokens is not None:
            _check_least(f"tokens of {task.name}", task.tokens, 1)
    _check_reference(settings)


def _check_reference(settings: StudySettings) -> None:
    names = [variant.name for variant in settings.variants]
    if settings.reference not in names:
        raise InputError(f"reference={settings.reference}, expected one of the variants {', '.join(names)}")
    chunks = settings.chunks_of(settings.variant(settings.reference))
    if settings.reference_chunk not in chunks:
        raise InputError(
            f"reference_chunk={settings.reference_chunk}, expected one of the chunks {chunks} of "
            f"{settings.reference}"
        )


def _check_names(key: str, names: Sequence[str]) -> None:
    if not names:
        raise InputError(f"{key} is empty, expected at least one")
    for name in names:
        if not name or set(name) - _NAME_LETTERS:
            raise InputError(f"{key} has the name {name!r}, expected a-z, 0-9 and _: it names folders")
    if len(set(names)) < len(names):
        raise InputError(f"{key} has a name twice: {', '.join(names)}; name each once")


def _check_different(key: str, numbers: Sequence[int], least: int) -> None:
    if not numbers or min(numbers) < least or len(set(numbers)) < len(numbers):
        raise InputError(f"{key} is {numbers}, expected different numbers of at least {least}")


def _check_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{key} is {value}, expected at least {least}")


def _check_settings(
    key: str, words: Sequence[str], filled_in: Sequence[str] = _FILLED_IN, command: str = "train"
) -> None:
    """Refuse settings that the study computes, and sections that hold one."""
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals:
            raise InputError(f"{key} has {word!r}, expected key=value as for `worldvla {command}`")
        for computed in filled_in:
            if name == computed or name.startswith(f"{computed}."):
                raise InputError(f"{key} has {word}, but the study computes {name}; leave it out")
            if computed.startswith(f"{name}."):
                raise InputError(
                    f"{key} has {word}, but the study computes {computed}; set single keys of {name}"
                )
