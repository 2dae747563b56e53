"""Which committed checkpoints are to be evaluated."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from pretrain.checkpoint.manifest import committed

_FOLDER = re.compile(r"^step_(\d{8})$")
RESULTS = "results.json"


def committed_steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints that are complete, ascending."""
    return [int(path.name.removeprefix("step_")) for path in committed(checkpoints)]


def evaluated_steps(evaluations: Path) -> set[int]:
    """Steps whose evaluation has left its results."""
    found = (_FOLDER.match(path.parent.name) for path in evaluations.glob(f"step_*/{RESULTS}"))
    return {int(match.group(1)) for match in found if match}


def due_steps(committed: Collection[int], every: int, last: int, done: Collection[int]) -> list[int]:
    """Committed steps that are to be evaluated and are not yet, ascending.

    Args:
        committed: Steps with a complete checkpoint.
        every: `eval.every`: multiples of it are evaluated; 0: none.
        last: Last step of the schedule, evaluated whether a multiple or not.
        done: Steps already evaluated or begun.
    """
    if every <= 0:
        return []
    return sorted(step for step in committed if (step % every == 0 or step == last) and step not in done)
