"""The contents of a run folder, or of the folder of one evaluation, validated as far as the report needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.errors import InputError
from eval.report.evaluations import (
    Differing,
    EvaluationRecord,
    StoredEvaluation,
    differing_conditions,
    joined,
)
from eval.report.json_values import Json, number, read_json
from pretrain.run_layout import (
    IMAGINE_PUBLISHED_STEM,
    IMAGINE_STEM,
    RESULTS_FILE,
    TRAINED_SUFFIX,
    RunLayout,
    files_by_step,
)

_ROLLOUTS = tuple(f"{stem}.png" for stem in (IMAGINE_STEM, IMAGINE_PUBLISHED_STEM))
_SUPERSEDED = "superseded_"  # beginning of the name of such a folder


@dataclass(frozen=True)
class RunContents:
    """The contents of a run folder; files that do not exist yet are empty.

    Attributes:
        path: The folder.
        is_run: Whether it is a run's folder; else it is that of one evaluation.
        configuration: Text of `config.yaml`.
        summary: `summary.json`.
        steps: Lines of `metrics.jsonl` that are measurements, ascending in step.
        events: The other lines (a resume).
        stored: Every folder with results, as it is.
        evaluations: The same, joined (`eval.report.evaluations`), ascending in step.
        rollouts: Picture of the newest world-model rollout of each protocol; where there is one of the
            trained weights beside that of their average, its newest, too.
    """

    path: Path
    is_run: bool
    configuration: str
    summary: Json
    steps: Sequence[Json]
    events: Sequence[Json]
    stored: Sequence[StoredEvaluation]
    evaluations: Sequence[EvaluationRecord]
    rollouts: Sequence[Path]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.resolve().name

    def with_labels(self, differing: Differing) -> RunContents:
        """The same, with evaluations told apart by these conditions: for runs beside one another."""
        return replace(self, evaluations=joined(self.stored, differing))


def read_run(path: Path) -> RunContents:
    """Read a run folder, or the folder of one evaluation.

    Raises:
        InputError: It is neither, or a file is damaged.
    """
    layout = RunLayout(path)
    is_run = layout.config.is_file() or layout.metrics.is_file()
    if not is_run and not any((path / name).is_file() for name in (RESULTS_FILE, *_ROLLOUTS)):
        raise InputError(
            f"{path}: no config.yaml, no metrics.jsonl and no {RESULTS_FILE} here; name a run folder "
            "(runs/<name>) or an evaluation's folder (runs/<name>/eval/step_...)"
        )
    lines = _read_lines(layout.metrics) if layout.metrics.is_file() else []
    folders = _evaluation_folders(layout) if is_run else [path]
    results = [file for folder in folders if (file := folder / RESULTS_FILE).is_file()]
    stored = [StoredEvaluation(file.parent, read_json(file)) for file in results]
    return RunContents(
        path=path,
        is_run=is_run,
        configuration=layout.config.read_text("utf-8", "replace") if layout.config.is_file() else "",
        summary=read_json(layout.summary) if layout.summary.is_file() else {},
        steps=sorted((line for line in lines if _is_measurement(line)), key=lambda line: line["step"]),
        events=[line for line in lines if "event" in line],
        stored=stored,
        evaluations=joined(stored, differing_conditions(stored)),
        rollouts=[picture for name in _ROLLOUTS for picture in _pictures(layout, name, is_run)],
    )


def _evaluation_folders(layout: RunLayout) -> list[Path]:
    """The folders of evaluations, without those of checkpoints that the run has gone back behind."""
    folders = sorted(layout.evaluations.glob("*"))
    return [folder for folder in folders if not folder.name.startswith(_SUPERSEDED)]


def _pictures(layout: RunLayout, name: str, is_run: bool) -> list[Path]:
    """The newest picture of that name, and that of trained weights; of an evaluation's folder its own."""
    if is_run:
        found = [files_by_step(layout.evaluations, name, suffix) for suffix in ("", TRAINED_SUFFIX)]
        return [paths[max(paths)] for paths in found if paths]
    return [layout.path / name] if (layout.path / name).is_file() else []


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
