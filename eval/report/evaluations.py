"""The evaluations of a run: one for each suite and step, joined where several are of the same conditions.

A checkpoint may have been evaluated beside its training and again by `worldvla eval`. Under the same
conditions the episodes of both are those of one evaluation; under others (another horizon, another simulator)
the two are told apart by a label that says what differs.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.evaluation.reproduction import joined_differences
from eval.evaluation.results import wilson
from eval.report.json_values import Json, integer, mapping, number, rows
from pretrain.run_layout import parse_step_name

# Keys of results.json that say how episodes were run, beside the decoder. Values that are objects are
# compared key by key.
_CONDITIONS = (
    "horizon",
    "renderer",
    "observations",
    "reset",
    "precision",
    "weights",
    "versions",
    "standin_assets",
    "policy_settings",
)
_CAPABILITY = "decoders"  # of the policy settings: what the policy can do, not how it was evaluated
_MAX_SHOWN = 24  # characters of a value in a label

Key = tuple[int, int]
"""Task and initial state."""

Differing = Mapping[str, tuple[str, ...]]
"""Suite -> names of the conditions by which its evaluations are told apart."""


@dataclass(frozen=True)
class StoredEvaluation:
    """One folder with its `results.json`."""

    folder: Path
    results: Json

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return str(self.results.get("suite", "suite"))

    @property
    def step(self) -> int | None:
        """Optimiser step of the evaluated checkpoint; None for a policy without one."""
        step = integer(self.results, "step")
        return step if step is not None else parse_step_name(self.folder.name)

    def conditions(self) -> dict[str, str]:
        """Recorded conditions by name, as text."""
        found: dict[str, str] = {}
        for name in _CONDITIONS:
            value = self.results.get(name)
            for part, text in value.items() if isinstance(value, dict) else [(name, value)]:
                if text is not None and part != _CAPABILITY:
                    found[str(part).replace("_", " ")] = str(text)
        if (decoder := decoder_of(self.results)) is not None:
            found["decoder"] = decoder
        if self.step is None:
            found["policy"] = str(self.results.get("policy", "unknown"))
        return found


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation in the report.

    Attributes:
        label: The suite, and what tells the evaluation apart from others of that suite.
        step: Optimiser step of the evaluated checkpoint; None for a policy without one.
        results: Content of `results.json`; of joined evaluations the same keys over all their episodes.
        videos: Video of each recorded episode.
        folders: The folders that it was read from, the one of most episodes first.
    """

    label: str
    step: int | None
    results: Json
    videos: Mapping[Key, Path]
    folders: Sequence[Path] = ()


def decoder_of(results: Json) -> str | None:
    """How the policy decided, None for one without a network; earlier versions had `discrete` alone."""
    decoder = results.get("decoder")
    if isinstance(decoder, str):
        return decoder
    return "discrete" if mapping(results, "policy_settings") else None


def differing_conditions(stored: Iterable[StoredEvaluation]) -> Differing:
    """The conditions with several recorded values; what an earlier version did not record says nothing."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for evaluation in stored:
        for name, value in evaluation.conditions().items():
            values[evaluation.suite][name].add(value)
    return {
        suite: tuple(name for name, found in names.items() if len(found) > 1)
        for suite, names in values.items()
    }


def joined(stored: Sequence[StoredEvaluation], differing: Differing) -> list[EvaluationRecord]:
    """One record for each label and step, ascending in step; policies without a step come first."""
    groups: dict[tuple[int, str], list[StoredEvaluation]] = defaultdict(list)
    for evaluation in stored:
        step = -1 if evaluation.step is None else evaluation.step
        groups[step, _label(evaluation, differing)].append(evaluation)
    return [_join(label, group) for (_, label), group in sorted(groups.items())]


def newest(evaluations: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    """The last evaluation of each label, sorted by label; evaluations are ascending in step."""
    last = {evaluation.label: evaluation for evaluation in evaluations}
    return [last[label] for label in sorted(last)]


def newest_and_earlier(
    evaluations: Sequence[EvaluationRecord],
) -> tuple[list[EvaluationRecord], list[EvaluationRecord]]:
    """`newest`, and the others from the newest step back."""
    last = newest(evaluations)
    return last, [each for each in reversed(evaluations) if all(each is not other for other in last)]


def episode_key(row: Json) -> Key | None:
    """Task and initial state of a row of `per_episode`; None where it does not say."""
    task, state = integer(row, "task"), integer(row, "initial_state")
    return None if task is None or state is None else (task, state)


def _label(evaluation: StoredEvaluation, differing: Differing) -> str:
    conditions = evaluation.conditions()
    parts = []
    for name in differing.get(evaluation.suite, ()):
        value = conditions.get(name)
        parts.append(f"{name} not recorded" if value is None else f"{name} {_shown(value)}")
    return f"{evaluation.suite} ({', '.join(parts)})" if parts else evaluation.suite


def _shown(value: str) -> str:
    """A value in a label: of a long one the beginning and a checksum, so that others have other labels."""
    if len(value) <= _MAX_SHOWN:
        return value
    checksum = hashlib.sha256(value.encode(errors="backslashreplace")).hexdigest()
    return f"{value[:_MAX_SHOWN]}... {checksum[:8]}"


def _join(label: str, group: Sequence[StoredEvaluation]) -> EvaluationRecord:
    """One record of all episodes; where two evaluations ran the same one, the larger evaluation's counts."""
    ordered = sorted(group, key=lambda e: (-(number(e.results, "episodes") or 0), e.folder.name))
    results = ordered[0].results
    if len(ordered) > 1 and all(_lists_its_episodes(evaluation.results) for evaluation in ordered):
        results = _joined_results([evaluation.results for evaluation in ordered])
    videos: dict[Key, Path] = {}
    for evaluation in reversed(ordered):
        videos |= _videos(evaluation)
    folders = [evaluation.folder for evaluation in ordered]
    return EvaluationRecord(label, ordered[0].step, results, videos, folders)


def _lists_its_episodes(results: Json) -> bool:
    keys = [episode_key(row) for row in rows(results, "per_episode")]
    return None not in keys and len(keys) == number(results, "episodes")


def _joined_results(parts: Sequence[Json]) -> Json:
    episodes: dict[Key | None, Json] = {}
    tasks: dict[int | None, Json] = {}
    for part in parts:
        for row in rows(part, "per_episode"):
            known = episodes.get(episode_key(row))
            if known is None or (known.get("error") and not row.get("error")):
                episodes[episode_key(row)] = row
        for row in rows(part, "per_task"):
            tasks.setdefault(integer(row, "number"), row)
    kept = list(episodes.values())
    per_task = [
        {**row, **_counts([episode for episode in kept if integer(episode, "task") == task])}
        for task, row in sorted(tasks.items(), key=lambda item: item[0] or 0)
    ]
    states = sorted({key[1] for row in kept if (key := episode_key(row)) is not None})
    joined = {**parts[0], **_counts(kept), "per_episode": kept, "per_task": per_task, "seeds": states}
    joined["per_category"] = _category_rows(per_task, kept, rows(parts[0], "per_category"))
    if isinstance(parts[0].get("published_differences"), list):
        joined["published_differences"] = joined_differences(
            str(joined.get("suite")),
            [str(each) for each in parts[0]["published_differences"]],
            _states(parts[0]),
            _states(joined),
            integer(joined, "suite_tasks"),
        )
    return joined


def _states(results: Json) -> Counter[int]:
    """Task -> number of its initial states."""
    keys = [episode_key(row) for row in rows(results, "per_episode")]
    return Counter(key[0] for key in keys if key is not None)


def _category_rows(per_task: Sequence[Json], episodes: Sequence[Json], before: Sequence[Json]) -> list[Json]:
    """Rows of what the tasks of a robustness suite change, as `before` but of all episodes."""
    published = {str(row.get("category")): mapping(row, "published") for row in before}
    tasks: dict[str, set[int | None]] = {}
    for row in per_task:
        if category := row.get("category"):
            tasks.setdefault(str(category), set()).add(integer(row, "number"))
    return [
        {"category": category, "tasks": len(numbers), "published": published.get(category, {})}
        | _counts([episode for episode in episodes if integer(episode, "task") in numbers])
        for category, numbers in tasks.items()
    ]


def _counts(episodes: Sequence[Json]) -> dict[str, Any]:
    """The counts that `results.json` has of episodes."""
    errors = sum(bool(row.get("error")) for row in episodes)
    solved = [row for row in episodes if row.get("success") and not row.get("error")]
    counted = len(episodes) - errors
    steps = [value for row in solved if (value := number(row, "steps")) is not None]
    return {
        "episodes": len(episodes),
        "successes": len(solved),
        "errors": errors,
        "success_rate": len(solved) / counted if counted else None,
        "wilson_95": list(wilson(len(solved), counted)),
        "mean_steps_to_success": sum(steps) / len(steps) if steps else None,
    }


def _videos(evaluation: StoredEvaluation) -> dict[Key, Path]:
    """Videos named in the results; the folder may contain others, of episodes that were run again."""
    files = {file.name: file for file in evaluation.folder.glob("*.mp4")}
    return {
        key: file
        for row in rows(evaluation.results, "per_episode")
        if (key := episode_key(row)) is not None
        and isinstance(row.get("video"), str)
        and (file := files.get(row["video"])) is not None
    }
