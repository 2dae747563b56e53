"""The report's numbers stand beside what they are to be compared with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.report.json_values import integer, number
from eval.report.page import write_report

FRAME = {"psnr": 24.2, "ssim": 0.8, "no_change_psnr": 26.7, "no_change_ssim": 0.9}


def write_run(run: Path, scores: dict[str, Any], results: dict[str, Any] | None = None) -> Path:
    folder = run / "eval/step_00000100"
    folder.mkdir(parents=True)
    (run / "config.yaml").write_text("run: {name: r}\n")
    (run / "metrics.jsonl").write_text('{"step": 100, "loss_action": 1.5}\n')
    content = {"suite": "libero_goal", "step": 100, "episodes": 1, "success_rate": 0.0, "per_task": []}
    (folder / "results.json").write_text(json.dumps(content | (results or {})))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "imagine.png")
    (folder / "imagine.json").write_text(json.dumps(scores))
    return run


def page(run: Path) -> str:
    return " ".join(write_report(run).read_text().split())


def row_of(text: str, name: str) -> list[str]:
    """Cells of the table row of that name."""
    (row,) = re.findall(rf"<tr><td>{re.escape(name)}</td>(.*?)</tr>", text)
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_scores_of_the_world_model_stand_beside_those_of_no_change(tmp_path: Path) -> None:
    horizon = {"frames": 10, "fvd": 300.0, "no_change_fvd": 200.0, "psnr": 25.0, "no_change_psnr": 27.0}
    rollouts = [{"frames": [FRAME] * 50}, {"frames": [FRAME] * 49}]
    scores = {**FRAME, "frames": [FRAME] * 50, "rollouts": rollouts, "horizons": [horizon]}
    text = page(write_run(tmp_path / "run", scores))
    assert "PSNR 24.2 dB (no change: 26.7 dB), SSIM 0.800 (no change: 0.900)" in text
    assert "over 99 frames of 2 episodes (49 to 50 each)" in text
    ours, unchanged = (row_of(text, name) for name in ("this checkpoint", "no change"))
    assert ours == ["10", "", "300", "25", "-", "-"]
    assert unchanged == ["10", "", "200", "27", "-", "-"]


@pytest.mark.parametrize("key", ["held_psnr", "no_change_psnr"])
def test_the_chart_has_the_baseline_of_earlier_versions_too(key: str, tmp_path: Path) -> None:
    frames = [{"psnr": 20.0 + i, key: 26.0} for i in range(5)]
    text = page(write_run(tmp_path / "run", {"psnr": 22.0, "frames": frames}))
    assert "no change" in text
    assert "PSNR 22.0 dB over 5 frames" in text


def test_notes_of_an_evaluation_are_shown(tmp_path: Path) -> None:
    notes = {"notes": ["mujoco 3.4.0 is not the tested 3.3.2", 5]}
    text = page(write_run(tmp_path / "run", {"frames": []}, notes))
    assert "mujoco 3.4.0 is not the tested 3.3.2." in text
    assert "the results are of a version that did not record its protocol" in text


@pytest.mark.parametrize("text", ["1" + 400 * "0", "-1" + 400 * "0", "1e999", "NaN", "true", '"3"', "null"])
def test_what_is_no_finite_number_counts_as_absent(text: str) -> None:
    values = json.loads(f'{{"steps": {text}}}')
    assert number(values, "steps") is None
    assert integer(values, "steps") is None
