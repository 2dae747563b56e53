"""Trainings and evaluations at the demo's scale, for the benchmarks that compare success.

On robosuite's Lift, or on a task of another suite:

    <work>/demonstrations       of the scripted expert
    <work>/<shards>             prepared from them
    <work>/runs/<name>          trainings from random weights (configs/model/tiny.yaml), of action samples
                                alone unless a benchmark sets data.mixture
    <work>/evaluations/<name>   their last checkpoints

A stage whose result is there already is not repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Column
from eval.evaluation.results import wilson

SUITE = "robosuite_lift"
CHUNK = 5
DEMONSTRATIONS = 24
SUCCESS_COLUMNS = (
    Column("seeds", "seeds"),
    Column("episodes", "episodes"),
    Column("successes", "successes"),
    Column("success", "success", "%", digits=1),
    Column("low", "95 % from", "%", digits=1),
    Column("high", "to", "%", digits=1),
    Column("by_seed", "successes by seed"),
)
"""What `success` gives."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is recorded, trained and evaluated.

    Attributes:
        demonstrations: Episodes of the expert.
        steps: Optimiser steps of each training, of 8 sequences.
        seeds: Trainings of each kind.
        episodes: Of each evaluation.
    """

    demonstrations: int
    steps: int
    seeds: int
    episodes: int


def add_arguments(parser: ArgumentParser, steps: int) -> None:
    """Add `--work`, `--steps`, `--seeds` and `--episodes`; `steps` is the default."""
    parser.add_argument("--work", type=Path, required=True, help="folder for demonstrations, shards and runs")
    parser.add_argument("--steps", type=int, default=steps, help="optimiser steps of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--episodes", type=int, default=50, help="episodes on each suite")


def sizes_of(options: Namespace, smoke: Sizes) -> Sizes:
    """The sizes of parsed arguments; `smoke` where `--smoke` is given."""
    if options.smoke:
        return smoke
    return Sizes(DEMONSTRATIONS, options.steps, options.seeds, options.episodes)


def prepare(
    work: Path, sizes: Sizes, shards: str = "shards", *words: str, suite: Sequence[str] = (f"suite={SUITE}",)
) -> None:
    """Record the expert and prepare its demonstrations in `work/<shards>`.

    Args:
        work: The working folder.
        sizes: Number of demonstrations.
        shards: Folder in it.
        words: More settings of `worldvla prepare`.
        suite: Settings of `worldvla collect` that say what is recorded.
    """
    demonstrations = work / "demonstrations"
    if not demonstrations.exists():
        run(*collecting(demonstrations, sizes.demonstrations, *suite))
    if not (work / shards / "index.json").exists():
        run(*preparing(demonstrations, work / shards, *words))


def train(work: Path, name: str, seed: int, steps: int, *words: str, shards: str = "shards") -> None:
    """Train in `work/runs/<name>`; `words` are more settings."""
    if checkpoint(work, name, steps).exists():
        return
    own = ("data.split=all", "data.mixture.world=0", f"data.chunk={CHUNK}", "trainer.sequence_length=160")
    every = f"checkpointing.every={steps}"
    base = ("experiment=demo", "model=tiny", "parallel=single", "optim.ema=null")
    run(*training(work / "runs" / name, work / shards, steps, seed, *base, *own, every, *words))


def evaluate(work: Path, name: str, trained: str, sizes: Sizes, *words: str) -> dict[str, Any]:
    """The summary of the results of training `trained`, in `work/evaluations/<name>`.

    Args:
        work: The working folder.
        name: Of the evaluation.
        trained: Of the training.
        sizes: Steps of the training, and episodes.
        words: Suite, tasks, and more settings.
    """
    out = work / "evaluations" / name
    if not (out / "results.json").exists():
        path = checkpoint(work, trained, sizes.steps)
        run(*evaluating(path, out, *words))
    return json.loads((out / "results.json").read_bytes())


def checkpoint(work: Path, name: str, steps: int) -> Path:
    """The last checkpoint of a training."""
    return checkpoint_of(work / "runs" / name, steps)


def success(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Columns of a table: success over several evaluations with the 95 % interval of Wilson, percent.

    Episodes that ended in an error of the simulator do not count; where all did, the rates are None.
    """
    by_seed = [int(result["successes"]) for result in results]
    episodes = sum(int(result["episodes"]) - int(result["errors"]) for result in results)
    rates: dict[str, float | None] = dict.fromkeys(("success", "low", "high"))
    if episodes:
        low, high = wilson(sum(by_seed), episodes)
        rates = {"success": 100 * sum(by_seed) / episodes, "low": 100 * low, "high": 100 * high}
    return {
        "seeds": len(results),
        "episodes": episodes,
        "successes": sum(by_seed),
        **rates,
        "by_seed": " ".join(map(str, by_seed)),
    }


def final_mean(work: Path, names: Sequence[str], metric: str) -> float | None:
    """Mean of a metric over the last tenth of the lines of several trainings; None: it was not measured."""
    values: list[float] = []
    for name in names:
        path = work / "runs" / name / "metrics.jsonl"
        found = [value for value in _metric(path, metric) if value is not None]
        values += found[-max(1, len(found) // 10) :] if found else []
    return sum(values) / len(values) if values else None


def collecting(demonstrations: Path, episodes: int, *words: str) -> tuple[str, ...]:
    """Arguments of Python that record demonstrations of the scripted expert, with one simulator."""
    return worldvla("collect", f"episodes={episodes}", f"out={demonstrations}", "workers=1", *words)


def preparing(demonstrations: Path, shards: Path, *words: str) -> tuple[str, ...]:
    """Arguments of Python that prepare demonstrations."""
    return worldvla("prepare", f"source={demonstrations}", f"out={shards}", "workers=1", *words)


def training(folder: Path, shards: Path, steps: int, seed: int, *words: str) -> tuple[str, ...]:
    """Arguments of Python that train in one process, without Ray.

    Args:
        folder: Of the run.
        shards: The prepared data.
        steps: Optimiser steps.
        seed: Of the training.
        words: All other settings.
    """
    return (
        *("-m", "pretrain.torchrun", "--standalone", "--nproc-per-node=1", "-m", "pretrain.main"),
        f"run.dir={folder.parent}",
        f"run.name={folder.name}",
        f"data.url={shards}",
        f"trainer.steps={steps}",
        f"trainer.seed={seed}",
        "telemetry.wandb=disabled",
        *words,
    )


def evaluating(checkpoint: Path, out: Path, *words: str) -> tuple[str, ...]:
    """Arguments of Python that evaluate a checkpoint, with one simulator and no videos."""
    return worldvla("eval", f"checkpoint={checkpoint}", "workers=1", "videos=0", f"out={out}", *words)


def worldvla(command: str, *words: str) -> tuple[str, ...]:
    """Arguments of Python for a command of the project."""
    return "-m", "cluster.cli.main", command, *words


def checkpoint_of(folder: Path, step: int) -> Path:
    """A checkpoint of a run."""
    return folder / "checkpoints" / f"step_{step:08d}"


def run(*words: str) -> None:
    """Run this Python with these arguments, to its end."""
    subprocess.run([sys.executable, *words], check=True)


def _metric(path: Path, metric: str) -> Iterator[float | None]:
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        if "event" not in record:
            yield record.get(metric)
