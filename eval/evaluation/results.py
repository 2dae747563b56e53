"""Results of an evaluation: counts, intervals, JSON and a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from data.errors import InputError
from data.files import write_text_whole
from eval.evaluation.provenance import Provenance
from eval.evaluation.published_rates import is_plus, published_plus_rates, published_rates
from eval.evaluation.reproduction import (
    PublishedComparison,
    compare_with_published,
    protocol_differences,
)
from eval.rollout.episode import EpisodeResult
from eval.simulator.interface import TaskInfo
from pretrain.run_layout import RESULTS_FILE

MAX_TASK_ROWS = 100  # of a table; results.json has all
_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Results:
    """All episodes of one policy on one suite.

    Attributes:
        suite: Name of the suite.
        step: Optimiser step of the checkpoint; None for a policy without one.
        policy: The checkpoint's folder, or `expert`.
        tasks: The tasks that were run.
        episodes: One result per episode, tasks and initial states ascending.
        versions: Versions of the simulator's packages.
        standin_assets: Whether some visual assets were stand-ins.
        horizon: Maximum length of an episode in steps; None: the suite's own.
        provenance: What the outcomes depend on; None: not known.
        notes: Caveats: what could not be verified, versions that were not tested.
        suite_tasks: Number of all tasks of the suite; None: not known.
    """

    suite: str
    step: int | None
    policy: str
    tasks: tuple[TaskInfo, ...]
    episodes: tuple[EpisodeResult, ...]
    versions: dict[str, str]
    standin_assets: bool
    horizon: int | None = None
    provenance: Provenance | None = None
    notes: tuple[str, ...] = ()
    suite_tasks: int | None = None

    @property
    def successes(self) -> int:
        """Number of solved episodes."""
        return sum(episode.success for episode in self.episodes)

    @property
    def errors(self) -> int:
        """Number of episodes that ended in a simulator error."""
        return sum(episode.error is not None for episode in self.episodes)

    @property
    def success_rate(self) -> float | None:
        """Solved share of the episodes without errors; None where there are none."""
        counted = len(self.episodes) - self.errors
        return self.successes / counted if counted else None

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        counted = len(self.episodes) - self.errors
        seconds = sum(episode.seconds for episode in self.episodes)
        steps = sum(episode.steps for episode in self.episodes)
        return {
            "step": self.step,
            "policy": self.policy,
            "suite": self.suite,
            "tasks": [task.number for task in self.tasks],
            "episodes": len(self.episodes),
            "successes": self.successes,
            "errors": self.errors,
            "success_rate": self.success_rate,
            "wilson_95": wilson(self.successes, counted),
            "steps_per_second": steps / seconds if seconds else None,
            "per_task": [self._task_row(task) for task in self.tasks],
            "per_category": [self._category_row(category) for category in self.categories],
            "mean_steps_to_success": _mean_steps(self.episodes),
            "per_episode": [_episode_row(episode) for episode in self.episodes],
            "horizon": self.horizon or (self.tasks[0].horizon if self.tasks else None),
            "seeds": sorted({episode.initial_state for episode in self.episodes}),
            "versions": self.versions,
            "standin_assets": self.standin_assets,
            "suite_tasks": self.suite_tasks,
            **self._provenance(),
            "notes": list(self.notes),
            "published": published_rates(self.suite),
            "published_differences": self.published_differences(),
            "reproduction": [row.to_json() for row in self.reproduction()],
        }

    def _provenance(self) -> dict[str, Any]:
        return {} if self.provenance is None else asdict(self.provenance)

    def published_differences(self) -> list[str]:
        """In what this evaluation differs from the published protocol; empty where nothing is published."""
        states = Counter(episode.task for episode in self.episodes)
        return protocol_differences(
            self.suite,
            states,
            self.suite_tasks,
            self.tasks,
            self.horizon,
            self.standin_assets,
            self.provenance,
        )

    def reproduction(self) -> list[PublishedComparison]:
        """The success rate beside every published one of the suite."""
        interval = wilson(self.successes, len(self.episodes) - self.errors)
        return compare_with_published(self.suite, self.success_rate, interval, self.published_differences())

    @property
    def categories(self) -> tuple[str, ...]:
        """What the tasks of a robustness suite change, in the order of the tasks; empty for other suites."""
        return tuple(dict.fromkeys(task.category for task in self.tasks if task.category))

    def _task_row(self, task: TaskInfo) -> dict[str, Any]:
        named = {"number": task.number, "task": task.name, "instruction": task.instruction}
        named |= {"category": task.category} if task.category else {}
        return named | _counts([episode for episode in self.episodes if episode.task == task.number])

    def _category_row(self, category: str) -> dict[str, Any]:
        tasks = {task.number for task in self.tasks if task.category == category}
        published = published_plus_rates(category) if is_plus(self.suite) else {}
        named = {"category": category, "tasks": len(tasks), "published": published}
        return named | _counts([episode for episode in self.episodes if episode.task in tasks])


def task_texts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tasks of a suite in words: instructions, or names where several have the same instruction.

    Args:
        rows: `per_task` of its results.
    """
    count = Counter(row.get("instruction") for row in rows)
    orders = [("instruction", "task") if count[row.get("instruction")] == 1 else ("task",) for row in rows]
    return [
        next((str(row[name]) for name in order if row.get(name)), "")
        for row, order in zip(rows, orders, strict=True)
    ]


def category_text(row: Mapping[str, Any]) -> str:
    """A row of `per_category` in words: `all of camera: 1599 tasks (published: WorldVLA 0.1 %)`."""
    rates = ", ".join(f"{model} {100 * rate:.1f} %" for model, rate in row.get("published", {}).items())
    tasks = "1 task" if row["tasks"] == 1 else f"{row['tasks']} tasks"
    return f"all of {row['category']}: {tasks}" + (f" (published: {rates})" if rates else "")


def _counts(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Successes of some episodes, with the interval of their rate."""
    errors = sum(episode.error is not None for episode in episodes)
    solved = sum(episode.success for episode in episodes)
    counted = len(episodes) - errors
    return {
        "episodes": len(episodes),
        "successes": solved,
        "errors": errors,
        "success_rate": solved / counted if counted else None,
        "wilson_95": wilson(solved, counted),
        "mean_steps_to_success": _mean_steps(episodes),
    }


def _mean_steps(episodes: Sequence[EpisodeResult]) -> float | None:
    """Mean number of steps of the solved episodes; None without any."""
    solved = [episode.steps for episode in episodes if episode.success]
    return sum(solved) / len(solved) if solved else None


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a rate (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate, z2 = successes / trials, _Z_95**2
    middle = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 / (1 + z2 / trials) * (rate * (1 - rate) / trials + z2 / (4 * trials**2)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def write_results(results: Results, folder: Path) -> Path:
    """Write `results.json`: whole, or not at all.

    Raises:
        InputError: It cannot be written.
    """
    path = folder / RESULTS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, json.dumps(results.to_json(), indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free space there, or make it writable: the same "
            "command writes it from the finished episodes"
        ) from error
    return path


def results_table(results: Results) -> Table:
    """Success by task with 95 % intervals, for the console."""
    content = results.to_json()
    table = Table(title=f"{results.suite}: {results.policy}", title_justify="left", caption_justify="left")
    table.caption = _caption(results)
    table.add_column("task")
    for name in ("success", "rate", "95 %", "steps to success", "errors"):
        table.add_column(name, justify="right")
    rows: Sequence[dict[str, Any]] = content["per_task"]
    if len(rows) <= MAX_TASK_ROWS:
        for text, row in zip(task_texts(rows), rows, strict=True):
            table.add_row(text, *_cells(row))
    if categories := content["per_category"]:
        table.add_section()
        for row in categories:
            table.add_row(category_text(row), *_cells(row))
    if len(rows) > 1:
        table.add_section()
        table.add_row("all", *_cells(content))
    return table


def _caption(results: Results) -> str | None:
    """What the numbers depend on, and caveats for comparing them."""
    notes = [] if results.provenance is None else [str(results.provenance)]
    notes += results.notes
    if results.standin_assets:
        notes.append("some assets are stand-ins: not comparable with published rates to the digit")
    if results.errors:
        first = next(episode for episode in results.episodes if episode.error is not None)
        notes.append(
            f"{results.errors} episodes ended in an error and count neither way, first task {first.task}, "
            f"initial state {first.initial_state}: {first.error}"
        )
    for otherwise, what_next in (
        (False, "the same command records them again"),
        (True, "they are not run again for it; larger videos=N records others"),
    ):
        causes = [
            episode.video_error
            for episode in results.episodes
            if episode.video_error is not None and episode.repeated_otherwise == otherwise
        ]
        if causes:
            notes.append(
                f"videos not written: {len(causes)}, which changes no outcome; the first: {causes[0]}; "
                f"{what_next}"
            )
    return escape("; ".join(notes)) or None


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["wilson_95"]
    rate, steps = row["success_rate"], row["mean_steps_to_success"]
    return (
        f"{row['successes']}/{row['episodes'] - row['errors']}",
        "-" if rate is None else f"{100 * rate:.1f} %",
        f"{100 * low:.0f}-{100 * high:.0f} %",
        "-" if steps is None else f"{steps:.0f}",
        str(row["errors"]),
    )


def _episode_row(episode: EpisodeResult) -> dict[str, Any]:
    return {
        "task": episode.task,
        "initial_state": episode.initial_state,
        "success": episode.success,
        "steps": episode.steps,
        "error": episode.error,
        "attempts": episode.attempts,
        "seconds": round(episode.seconds, 3),
        "actions_sha256": episode.actions_sha256,
        "video": episode.video,
        "video_error": episode.video_error,
    }
