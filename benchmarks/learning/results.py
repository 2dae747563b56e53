"""What the finished parts of a study have measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import demo_runs
from benchmarks.learning.cells import Cell
from benchmarks.learning.parts import Part, Stage
from data.errors import InputError
from data.json_record import read_json_object
from eval.report.json_values import number

Record = dict[str, Any]
Point = tuple[float, float]
_REPAIR = "repeat its part with --again"
_NEEDED = ("step", "tokens", "tokens_per_second")  # numbers in each step's line
# Curve -> column of `demo_runs.success`.
_SUCCESS_CURVES = {"success": "success", "success_low": "low", "success_high": "high"}


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        seed: Of it.
        steps: Lines of its steps.
        validations: Those of its validations.
        seconds: Wall time, its start included.
    """

    seed: int
    steps: Sequence[Record]
    validations: Sequence[Record]
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens that it trained on, without padding."""
        return int(self.steps[-1]["tokens"])

    def tokens_at(self, step: int) -> int:
        """Tokens by a step."""
        return next(int(line["tokens"]) for line in self.steps if line["step"] >= step)


@dataclass(frozen=True)
class CellResult:
    """What the trainings of a cell have given, as far as they are done.

    Attributes:
        cell: The cell.
        runs: Finished trainings.
        evaluations: Checkpoint, counted from 1 -> seed -> its `results.json`.
        imagined: Checkpoint -> seed -> its `imagine.json`.
    """

    cell: Cell
    runs: Sequence[Run]
    evaluations: dict[int, dict[int, Record]]
    imagined: dict[int, dict[int, Record]]

    def belongs_to(self, chunk: int) -> bool:
        """Whether it is compared with the variants of this K: also if its K is not the study's to choose."""
        return chunk == self.cell.chunk or self.cell.variant.chunks == [self.cell.chunk]

    @property
    def last(self) -> int:
        """Number of the last checkpoint."""
        return self.cell.settings.checkpoints

    @property
    def row(self) -> Record:
        """Numbers of the table at the end of the training; None: not measured."""
        content = self.cell.content if self.runs else None
        steps = self.cell.steps if self.runs else None
        imagined = list(self.imagined.get(self.last, {}).values())
        return {
            "task": self.cell.task.name,
            "variant": self.cell.variant.name,
            "chunk": self.cell.chunk,
            "equal": self.cell.equal,
            "trainings": len(self.runs),
            "steps": steps,
            "tokens": mean([float(run.tokens) for run in self.runs]),
            "action_samples": None if content is None or steps is None else steps * content.action_samples,
            "world_samples": None if content is None or steps is None else steps * content.world_samples,
            "padding": None if content is None else 100 * content.padding,
            **self._success(),
            **{name: self._validated(name) for name in ("loss_action", "accuracy_action", "action_l1")},
            "action_head_l1": self._validated("action_head_l1"),
            "psnr": mean([float(each["psnr"]) for each in imagined]),
            "no_change_psnr": mean([float(each["no_change_psnr"]) for each in imagined]),
            "seconds": mean([run.seconds for run in self.runs]),
            "tokens_per_second": mean([_speed(run) for run in self.runs]),
            "paper": self.cell.variant.paper,
            "curves": self.curves(),
        }

    def curves(self) -> dict[str, list[list[float]]]:
        """Means over the seeds against the tokens trained: lists of [tokens, value].

        `success_low` and `success_high` are the ends of the 95 % interval at the points of `success`.
        """
        held_out = ("loss_action", "accuracy_action", "loss_image")
        curves = {f"val_ind/{name}": self._validation_curve(name) for name in held_out}
        curves["loss_action"] = self._training_curve("loss_action")
        for curve, column in _SUCCESS_CURVES.items():
            curves[curve] = self._checkpoint_curve(
                self.evaluations, lambda results, column=column: demo_runs.success(results)[column]
            )
        for name in ("psnr", "no_change_psnr"):
            curves[name] = self._checkpoint_curve(
                self.imagined, lambda results, name=name: fmean(float(each[name]) for each in results)
            )
        return {name: [list(point) for point in points] for name, points in curves.items() if points}

    def _success(self) -> Record:
        """Columns of success at the end of the trainings; None where nothing is measured."""
        at_end = self.evaluations.get(self.last, {})
        if not at_end:
            return dict.fromkeys(column.key for column in demo_runs.SUCCESS_COLUMNS)
        by_seed = [_successes(at_end.get(seed)) for seed in self.cell.settings.seeds]
        return demo_runs.success(list(at_end.values())) | {"by_seed": ", ".join(by_seed)}

    def _validated(self, name: str) -> float | None:
        """Mean of the last validation on held-out demonstrations."""
        last = [run.validations[-1].get(f"val_ind/{name}") for run in self.runs if run.validations]
        return mean([value for value in last if value is not None])

    def _validation_curve(self, name: str) -> list[Point]:
        by_step: dict[int, list[float]] = {}
        for run in self.runs:
            for event in run.validations:
                value = event.get(f"val_ind/{name}")
                if value is not None:
                    by_step.setdefault(event["step"], []).append(value)
        return [(self.runs[0].tokens_at(step), fmean(values)) for step, values in sorted(by_step.items())]

    def _training_curve(self, name: str, points: int = 40) -> list[Point]:
        """Means over the seeds and over the steps of each of some intervals."""
        if not self.runs:
            return []
        count, curve = min(len(run.steps) for run in self.runs), list[Point]()
        for i in range(min(points, count)):
            part = slice(count * i // min(points, count), count * (i + 1) // min(points, count))
            lines = [line for run in self.runs for line in run.steps[part] if line.get(name) is not None]
            if lines:
                tokens, values = (fmean(float(line[key]) for line in lines) for key in ("tokens", name))
                curve.append((tokens, values))
        return curve

    def _checkpoint_curve(
        self, results: dict[int, dict[int, Record]], value: Callable[[list[Record]], float | None]
    ) -> list[Point]:
        """Means over the seeds at the checkpoints at which all finished trainings were measured."""
        curve: list[Point] = []
        for checkpoint, found in sorted(results.items()):
            measured = value(list(found.values()))
            if measured is not None and found.keys() == {run.seed for run in self.runs}:
                curve.append((self.runs[0].tokens_at(self.cell.checkpoint_step(checkpoint)), measured))
        return curve


def read_results(cells: Sequence[Cell], parts: Sequence[Part]) -> list[CellResult]:
    """The results of all finished parts, for every cell, also those of which none is."""
    done = {part.name: part for part in parts if part.state() == "done"}.values()
    return [_of_cell(cell, [part for part in done if _is_of(part, cell)]) for cell in cells]


def core_hours(parts: Sequence[Part], task: str, jobs: int) -> float:
    """Hours of one core that the finished parts of a task took; `jobs` cores where one runs alone."""
    seconds = 0.0
    for part in parts:
        marker = part.read_marker() if part.labels["task"] == task else None
        if marker and marker["done"]:
            seconds += marker["seconds"] * (jobs if part.alone else 1)
    return seconds / 3600


def mean(values: Sequence[float]) -> float | None:
    """The mean; None without values."""
    return fmean(values) if values else None


def _is_of(part: Part, cell: Cell) -> bool:
    labels = part.labels
    found = labels["task"], labels.get("variant"), labels.get("chunk")
    return found == (cell.task.name, cell.variant.name, str(cell.chunk))


def _of_cell(cell: Cell, parts: Sequence[Part]) -> CellResult:
    evaluations = _by_checkpoint(parts, "eval", "results.json")
    imagined = _by_checkpoint(parts, "imagine", "imagine.json")
    runs = [_run(part, cell.steps) for part in parts if part.stage == "train"]
    return CellResult(cell, runs, evaluations, imagined)


def _successes(results: Record | None) -> str:
    """Successes of one evaluation, with the episodes that do not count."""
    if results is None:
        return "-"
    errors = results["errors"]
    more = f" ({errors} {'error' if errors == 1 else 'errors'})" if errors else ""
    return f"{results['successes']}{more}"


def _by_checkpoint(parts: Sequence[Part], stage: Stage, file: str) -> dict[int, dict[int, Record]]:
    found: dict[int, dict[int, Record]] = {}
    for part in parts:
        if part.stage == stage:
            record = read_json_object(part.folder / file, _REPAIR)
            _CHECKS[stage](record, part.folder / file)
            found.setdefault(int(part.labels["checkpoint"]), {})[int(part.labels["seed"])] = record
    return found


def _check_results(results: Record, path: Path) -> None:
    found = [results.get(key) for key in ("successes", "errors", "episodes")]
    counts = [count for count in found if type(count) is int and count >= 0]
    if len(counts) < len(found) or sum(counts[:2]) > counts[2]:
        raise InputError(f"{path}: successes, errors and episodes are {found}; {_REPAIR}")


def _check_imagined(scores: Record, path: Path) -> None:
    keys = "psnr", "no_change_psnr"
    if any(number(scores, key) is None for key in keys):
        values = [scores.get(key) for key in keys]
        raise InputError(f"{path}: psnr and no_change_psnr are {values}; {_REPAIR}")


_CHECKS: dict[str, Callable[[Record, Path], None]] = {"eval": _check_results, "imagine": _check_imagined}


def _run(part: Part, last_step: int) -> Run:
    marker, path = part.read_marker() or {}, part.folder / "metrics.jsonl"
    steps, validations = _lines(path)
    last_validation = max((event["step"] for event in validations), default=0)
    if not steps or steps[-1]["step"] != last_step or last_validation > last_step:
        raise InputError(f"{path}: does not end with step {last_step}; {_REPAIR}")
    return Run(int(part.labels["seed"]), steps, validations, marker["seconds"])


def _lines(path: Path) -> tuple[list[Record], list[Record]]:
    """Lines of steps, and of validations."""
    try:
        records: list[Record] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_REPAIR}") from error
    for i, record in enumerate(records, start=1):
        if not _is_line(record):
            raise InputError(f"{path}: line {i} is none of a training's metrics; {_REPAIR}")
    steps = [record for record in records if "event" not in record]
    return steps, [record for record in records if record.get("event") == "validation"]


def _is_line(record: object) -> bool:
    """Whether a line of `metrics.jsonl` has the numbers that are read from it."""
    if not isinstance(record, dict):
        return False
    line: Record = record
    needed = _NEEDED
    if "event" in line:
        needed = ("step",) if line["event"] == "validation" else ()
    losses = [key for key in line if key.startswith(("val_ind/", "loss_")) and line[key] is not None]
    return all(number(line, key) is not None for key in (*needed, *losses))


def _speed(run: Run) -> float:
    return median(float(line["tokens_per_second"]) for line in run.steps)
