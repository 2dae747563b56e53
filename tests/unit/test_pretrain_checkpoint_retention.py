"""Which checkpoints the retention settings keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.checkpoint.retention import steps_to_remove, success_rates
from pretrain.config import CheckpointingConfig

STEPS = [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize(
    ("settings", "remaining"),
    [
        ({}, STEPS),
        ({"keep_every": 40}, STEPS),  # keep_last null keeps all
        ({"keep_last": 2}, [50, 60]),
        ({"keep_last": 0}, [60]),  # the newest always stays
        ({"keep_last": 1, "keep_every": 20}, [20, 40, 60]),
        ({"keep_last": 1, "keep_best": 1}, [30, 60]),  # of equal rates the later
        ({"keep_last": 1, "keep_best": 3}, [20, 30, 40, 60]),
        ({"keep_last": 1, "await_evaluation": 10}, [50, 60]),  # 10 was evaluated, with only errors
        ({"keep_last": 1, "keep_every": 40, "keep_best": 1, "await_evaluation": 25}, [30, 40, 50, 60]),
    ],
)
def test_last_multiples_best_and_unevaluated_steps_remain(settings: dict, remaining: list[int]) -> None:
    rates = {10: None, 20: 0.5, 30: 0.5, 40: 0.25, 70: 1.0}
    removed = steps_to_remove(STEPS[::-1], CheckpointingConfig(**settings), rates)
    assert removed == [step for step in STEPS if step not in remaining]


def test_success_rates_are_read_from_the_results_of_evaluations(tmp_path: Path) -> None:
    contents = {
        "step_00000010": {"success_rate": 0.25},
        "step_00000020": {"success_rate": None},
        "step_00000030": {"success_rate": 1},
        "other": {"success_rate": 1.0},
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    (tmp_path / "step_00000040").mkdir()  # not finished
    (tmp_path / "step_00000050").mkdir()
    (tmp_path / "step_00000050" / "results.json").write_text("{")
    assert success_rates(tmp_path) == {10: 0.25, 20: None, 30: 1.0}
    assert success_rates(None) == {}
