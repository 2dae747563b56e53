"""All parts of the study, made from its settings.

<work>/<task>/demonstrations                              of the scripted expert
<work>/<task>/tokenizer                                   where the task's is trained
<work>/<task>/shards                                      prepared with it
<work>/<task>/runs/<variant>_k<K>_s<seed>                 trainings
<work>/<task>/evaluations/<variant>_k<K>_s<seed>_c<C>     of checkpoint C, counted from 1
<work>/<task>/imagined/<variant>_k<K>_s<seed>_c<C>        rollouts of its world model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import demo_runs
from benchmarks.learning.cells import TOKENIZER, Cell
from benchmarks.learning.parts import Part, Stage
from benchmarks.learning.resolved import command_settings
from benchmarks.learning.settings import StudySettings, TaskSettings


def all_parts(settings: StudySettings, work: Path, cells: Sequence[Cell]) -> list[Part]:
    """All parts, in the order in which they run: a seed of every variant before the next seed.

    Args:
        settings: The study.
        work: Its working folder.
        cells: Of the settings.
    """
    parts: list[Part] = []
    prepared: dict[str, Part] = {}
    for task in settings.tasks:
        parts += _data_parts(task, work)
        prepared[task.name] = parts[-1]
    for seed in settings.seeds:
        for cell in cells:
            parts += _training_parts(cell, seed, prepared[cell.task.name])
    return parts


def _data_parts(task: TaskSettings, work: Path) -> Iterator[Part]:
    folder = work / task.name
    demonstrations, shards, tokenizer = folder / "demonstrations", folder / "shards", folder / "tokenizer"
    labels = {"task": task.name}
    of_suite = [f"suite={task.suite}", *_tasks(task), f"resolution={task.resolution}"]
    displaced = [f"displaced={task.displaced:g}"] if task.displaced else []
    words = demo_runs.collecting(demonstrations, task.demonstrations, *of_suite, *displaced, *task.collect)
    size = float(task.demonstrations)
    collect = _command("collect", labels, work, demonstrations, (), lambda: words, size, alone=True)
    yield collect
    needs, resolution = (collect,), f"resolution={task.resolution}"
    trained = []
    if task.image_tokenizer == "trained":
        out = f"out={tokenizer / TOKENIZER}"
        pixels = f"pixels={task.resolution}"
        vq_words = demo_runs.worldvla("vq", f"source={demonstrations}", out, pixels, *task.vq)
        vq = _command("vq", labels, work, tokenizer, needs, lambda: vq_words, alone=True)
        yield vq
        needs, trained = (vq,), [f"image_tokenizer={tokenizer / TOKENIZER}"]
    prepare_words = demo_runs.preparing(demonstrations, shards, resolution, *trained, *task.prepare)
    yield _command("prepare", labels, work, shards, needs, lambda: prepare_words, alone=True)


def _training_parts(cell: Cell, seed: int, prepared: Part) -> Iterator[Part]:
    settings, task, work = cell.settings, cell.task, cell.work
    labels = {"task": task.name, "variant": cell.variant.name, "chunk": str(cell.chunk), "seed": str(seed)}
    train = Part(
        "train",
        labels,
        work,
        cell.run(seed),
        (prepared,),
        lambda: cell.train_words(seed),
        lambda: asdict(cell.config),
        lambda: cell.steps * cell.content.sequences * cell.content.length,
    )
    yield train
    for number in range(1, settings.checkpoints + 1):
        of_checkpoint = labels | {"checkpoint": str(number)}
        name = f"{cell.run(seed).name}_c{number}"
        episodes = task.episodes if number == settings.checkpoints else task.episodes_between
        if episodes:
            yield _evaluation(cell, seed, number, episodes, of_checkpoint, name, train)
        if cell.imagines:
            yield _imagination(cell, seed, number, of_checkpoint, name, train)


def _evaluation(
    cell: Cell, seed: int, number: int, episodes: int, labels: dict[str, str], name: str, train: Part
) -> Part:
    out = cell.work / cell.task.name / "evaluations" / name

    def words() -> Sequence[str]:
        of_suite = [f"suite={cell.task.suite}", *_tasks(cell.task), f"episodes={episodes}"]
        return demo_runs.evaluating(cell.checkpoint(seed, number), out, *of_suite)

    return _command("eval", labels, cell.work, out, (train,), words, episodes)


def _imagination(cell: Cell, seed: int, number: int, labels: dict[str, str], name: str, train: Part) -> Part:
    out = cell.work / cell.task.name / "imagined" / name
    frames = f"frames={cell.settings.imagined_frames}"
    episodes = f"episodes={cell.settings.imagined_episodes}"

    def words() -> Sequence[str]:
        checkpoint = f"checkpoint={cell.checkpoint(seed, number)}"
        return demo_runs.worldvla("imagine", checkpoint, frames, episodes, f"out={out}")

    return _command("imagine", labels, cell.work, out, (train,), words)


def _command(
    stage: Stage,
    labels: dict[str, str],
    work: Path,
    folder: Path,
    needs: tuple[Part, ...],
    words: Callable[[], Sequence[str]],
    size: float = 1.0,
    *,
    alone: bool = False,
) -> Part:
    """A part that is one of the project's commands."""
    return Part(
        stage,
        labels,
        work,
        folder,
        needs,
        words,
        lambda: command_settings(words(), work),
        lambda: size,
        alone,
    )


def _tasks(task: TaskSettings) -> list[str]:
    return [] if task.tasks is None else [f"tasks=[{','.join(map(str, task.tasks))}]"]
