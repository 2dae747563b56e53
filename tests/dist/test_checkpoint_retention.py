"""A training keeps its best checkpoints by their evaluations, and removes others after each save."""

from __future__ import annotations

import json
from pathlib import Path

from pretrain.checkpoint.load import load
from pretrain.checkpoint.location import CheckpointLocation, step_folder
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.config import CheckpointingConfig
from tests.support import checkpoint_case as case
from tests.support.ranks import run_ranks

LAYOUT = (1, 2, 3)
RATES = {1: 0.25, 2: 0.75, 3: 0.5, 4: 0.0}


def _train(root: Path, settings: CheckpointingConfig) -> list[dict[int, bool]]:
    """Save each step, with results of evaluations one step late; the checkpoints after each save."""
    engine = case.build(case.config(LAYOUT))
    location = CheckpointLocation(root / "checkpoints")
    writer = CheckpointWriter(location, engine, settings, root / "eval")
    seen: list[dict[int, bool]] = []
    for step in range(1, 6):
        case.steps(engine, step)
        if step - 1 in RATES and engine.groups.rank == 0:
            folder = root / "eval" / f"step_{step - 1:08d}"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps({"success_rate": RATES[step - 1]}))
        writer.save(step, {})
        writer.wait()
        if engine.groups.rank == 0:
            assert writer.committed == location.steps()
            seen.append(location.scan())
    return seen


def _load(checkpoint: Path) -> int:
    engine = case.build(case.config(LAYOUT))
    load(checkpoint, engine)
    return engine.step_count


def test_best_checkpoint_by_success_rate_is_kept_and_can_be_loaded(tmp_path: Path) -> None:
    seen, _ = run_ranks(_train, 2, tmp_path, CheckpointingConfig(keep_last=1, keep_best=1))
    assert seen == [
        {1: True},
        {1: True, 2: True},  # the only one that was evaluated
        {2: True, 3: True},  # 2 is better than 1
        {2: True, 4: True},
        {2: True, 5: True},
    ]
    assert run_ranks(_load, 2, step_folder(tmp_path / "checkpoints", 2)) == [2, 2]


def test_checkpoint_is_kept_until_it_is_evaluated(tmp_path: Path) -> None:
    settings = CheckpointingConfig(keep_last=1, keep_best=2, keep_every=5, await_evaluation=2)
    seen, _ = run_ranks(_train, 2, tmp_path, settings)
    assert [list(steps) for steps in seen] == [[1], [1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 5]]
