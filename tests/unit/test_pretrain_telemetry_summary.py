"""The training's part of `summary.json`, which others write to at the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder
from pretrain.telemetry import summary

PROGRESS = {"steps": 2, "tokens": 10, "resumed_from": None}


def test_what_another_process_writes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)

    def evaluated_meanwhile(*_: Any, **__: Any) -> list[dict[str, Any]]:
        folder.update_summary(evaluations=[{"step": 2}])
        return []

    monkeypatch.setattr(summary, "read_metrics", evaluated_meanwhile)
    summary.write_summary(folder, TrainingConfig(), PROGRESS, [2], {})
    assert folder.read_summary()["evaluations"] == [{"step": 2}]


def test_a_start_without_lines_of_metrics_keeps_the_speed_of_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    speed = {"tokens_per_second": 3.0, "tflops_per_rank": 2.0, "mfu": 0.5}
    for given, expected in (({}, dict.fromkeys(speed)), (speed, speed), ({}, speed)):
        summary.write_summary(folder, TrainingConfig(), PROGRESS, [], given)
        content = folder.read_summary()
        assert {name: content[name] for name in speed} == expected
        assert (content["evaluations"], content["steps"]) == ([], 2)
