"""The contents of a run folder, validated as far as the report needs.

Numbers in these files may be absent, null or not finite (a diverged loss): `number` returns None for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.json_record import read_json_object
from pretrain.run_layout import RESULTS_FILE, RunLayout, files_by_step

Json = Mapping[str, Any]


@dataclass(frozen=True)
class EvaluationRecord:
    """One `eval/step_*/` folder with its `results.json`."""

    folder: Path
    results: Json

    @property
    def step(self) -> int:
        """Optimiser step of the evaluated checkpoint."""
        return int(number(self.results, "step") or 0)


@dataclass(frozen=True)
class RunContents:
    """The contents of a run folder; files that do not exist yet are empty.

    Attributes:
        path: The folder.
        configuration: Text of `config.yaml`.
        summary: `summary.json`.
        steps: Lines of `metrics.jsonl` that are measurements, ascending in step.
        events: The other lines (a resume).
        evaluations: Evaluated checkpoints, ascending in step.
    """

    path: Path
    configuration: str
    summary: Json
    steps: Sequence[Json]
    events: Sequence[Json]
    evaluations: Sequence[EvaluationRecord]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.resolve().name


def read_run(path: Path) -> RunContents:
    """Read a run folder.

    Raises:
        InputError: It contains neither `config.yaml` nor `metrics.jsonl`, or a file is damaged.
    """
    layout = RunLayout(path)
    configuration, metrics, summary = layout.config, layout.metrics, layout.summary
    if not configuration.is_file() and not metrics.is_file():
        raise InputError(f"{path}: no config.yaml and no metrics.jsonl here; name a run folder (runs/<name>)")
    lines = _read_lines(metrics) if metrics.is_file() else []
    results = files_by_step(layout.evaluations, RESULTS_FILE).values()
    evaluations = [EvaluationRecord(file.parent, read_json(file)) for file in results]
    return RunContents(
        path=path,
        configuration=configuration.read_text("utf-8", "replace") if configuration.is_file() else "",
        summary=read_json(summary) if summary.is_file() else {},
        steps=sorted((line for line in lines if _is_measurement(line)), key=lambda line: line["step"]),
        events=[line for line in lines if "event" in line],
        evaluations=sorted(evaluations, key=lambda evaluation: evaluation.step),
    )


def read_json(path: Path) -> Json:
    """Read a file with one JSON object.

    Raises:
        InputError: The file contains something else.
    """
    return read_json_object(path, "delete it or restore it")


def number(values: Json, key: str) -> float | None:
    """A finite number in a JSON object, else None."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(values: Json, key: str) -> Json:
    """An object inside a JSON object, empty where there is none."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def rows(values: Json, key: str) -> list[Json]:
    """A list of objects inside a JSON object, empty where there is none."""
    value = values.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _is_measurement(line: Json) -> bool:
    return "event" not in line and number(line, "step") is not None


def _read_lines(path: Path) -> list[Json]:
    lines = path.read_text("utf-8", "replace").split("\n")
    complete, unfinished = lines[:-1], lines[-1]  # a running trainer may still write its last line
    values: list[Json] = []
    for i, line in enumerate([*complete, unfinished] if unfinished.endswith("}") else complete, start=1):
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {i} is not JSON ({error}); delete that line") from error
        if isinstance(value, dict):
            values.append(value)
    return values
