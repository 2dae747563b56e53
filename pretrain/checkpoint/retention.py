"""Which checkpoints stay: a pure rule, and the evaluations that it depends on."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from pretrain.config import CheckpointingConfig
from pretrain.run_layout import RESULTS_FILE, files_by_step


def success_rates(evaluations: Path | None) -> dict[int, float | None]:
    """Success rate of every evaluated step below a run's `eval/`; None: not measured, only errors.

    A file that is not an evaluation's results is skipped: it is reported where evaluations are read.
    """
    rates: dict[int, float | None] = {}
    results = files_by_step(evaluations, RESULTS_FILE) if evaluations is not None else {}
    for step, path in results.items():
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(values, dict):
            rate = values.get("success_rate")
            rates[step] = float(rate) if isinstance(rate, int | float) else None
    return rates


def steps_to_remove(
    steps: Collection[int], settings: CheckpointingConfig, rates: Mapping[int, float | None]
) -> list[int]:
    """Committed steps that the retention settings do not keep, ascending. The newest always stays.

    Args:
        steps: All committed.
        settings: `keep_last` (None: all stay), `keep_every`, `keep_best`, `await_evaluation`.
        rates: As from `success_rates`; of equal rates the later step is the better.
    """
    ordered = sorted(steps)
    if settings.keep_last is None or not ordered:
        return []
    keep = set(ordered[-max(1, settings.keep_last) :])
    if settings.keep_every:
        keep |= {step for step in ordered if step % settings.keep_every == 0}
    rated = {step: rate for step in ordered if (rate := rates.get(step)) is not None}
    best = sorted(rated, key=lambda step: (rated[step], step), reverse=True)
    keep |= set(best[: settings.keep_best])
    if settings.await_evaluation:
        keep |= {step for step in ordered if step % settings.await_evaluation == 0 and step not in rates}
    return [step for step in ordered if step not in keep]
