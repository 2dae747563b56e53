"""Which checkpoints are kept: a pure rule, and the evaluations that it looks at."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from pretrain.config import CheckpointingConfig
from pretrain.run_layout import RESULTS_FILE, files_by_step


def evaluated(evaluations: Path | None) -> dict[int, float | None]:
    """Success rate of every evaluated step below a run's `eval/`; None: none was measured, all was errors.

    A file that is not an evaluation's results says nothing: whoever made it is told where it is read.
    """
    found: dict[int, float | None] = {}
    results = files_by_step(evaluations, RESULTS_FILE) if evaluations is not None else {}
    for step, path in results.items():
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(values, dict):
            rate = values.get("success_rate")
            found[step] = float(rate) if isinstance(rate, int | float) else None
    return found


def superfluous(
    steps: Collection[int], settings: CheckpointingConfig, scores: Mapping[int, float | None]
) -> list[int]:
    """Committed steps that may go, ascending. The newest always stays.

    Args:
        steps: All committed.
        settings: `keep_last` (None: all stay), `keep_every`, `keep_best`, `await_evaluation`.
        scores: As from `evaluated`; of equal rates the later step is the better.
    """
    ordered = sorted(steps)
    if settings.keep_last is None or not ordered:
        return []
    keep = set(ordered[-max(1, settings.keep_last) :])
    if settings.keep_every:
        keep |= {step for step in ordered if step % settings.keep_every == 0}
    rated = {step: rate for step in ordered if (rate := scores.get(step)) is not None}
    best = sorted(rated, key=lambda step: (rated[step], step), reverse=True)
    keep |= set(best[: settings.keep_best])
    if settings.await_evaluation:
        keep |= {step for step in ordered if step % settings.await_evaluation == 0 and step not in scores}
    return [step for step in ordered if step not in keep]
