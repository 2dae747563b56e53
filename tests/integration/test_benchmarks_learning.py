"""The study's program with the project's own commands, at two steps, one seed and one episode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.learning.__main__ import main

pytestmark = pytest.mark.timeout(900)  # simulators start slowly on a busy machine

_SETTINGS = {
    "tasks": [
        {
            "name": "lift",
            "title": "Lift",
            "suite": "robosuite_lift",
            "demonstrations": 10,  # of fewer none is held out
            "steps": 2,
            "global_batch": 1,
            "episodes": 1,
            "prepare": ["variants=1"],
        }
    ],
    "variants": [
        {"name": "chunk_mask", "title": "mask", "settings": ["data.mixture.world=0"], "paper": 76.6},
        {
            "name": "augmented",
            "title": "all",
            "settings": ["model.action_head.time_horizon={chunk}", "data.variants=1"],
        },
    ],
    "chunks": [5],
    "seeds": [0],
    "validations": 1,
    "validation_batches": 1,
    "imagined_frames": 2,
    "imagined_episodes": 1,
    "settings": ["experiment=demo", "parallel=single", "parallel.zero_stage=0", "data.mixture.action=1"],
}


def test_a_study_collects_trains_evaluates_and_publishes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, page = tmp_path / "study.yaml", tmp_path / "docs" / "learning.md"
    settings.write_text(yaml.safe_dump(_SETTINGS))
    page.parent.mkdir()
    page.write_text("<!-- learning: begin -->\n<!-- learning: end -->\n")
    words = ["--work", str(tmp_path / "work"), "--settings", str(settings)]
    assert main(words) == 0, capsys.readouterr().out
    assert main([*words, "--publish", "--root", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "benchmarks" / "results" / "learning-cpu.json").read_text())
    mask, augmented = written["rows"]
    assert [row["episodes"] for row in (mask, augmented)] == [1, 1]
    assert [row["trainings"] for row in (mask, augmented)] == [1, 1]
    assert (mask["world_samples"], mask["psnr"], mask["action_head_l1"]) == (0, None, None)
    assert augmented["world_samples"] == augmented["action_samples"] > 0
    assert augmented["psnr"] > 0
    assert augmented["no_change_psnr"] > 0
    assert 0 < augmented["action_head_l1"] < 2
    assert all(row["loss_action"] > 0 and row["tokens_per_second"] > 0 for row in (mask, augmented))
    for row, name in ((mask, "chunk_mask_k5_s0"), (augmented, "augmented_k5_s0")):
        lines = (tmp_path / "work" / "lift" / "runs" / name / "metrics.jsonl").read_text().splitlines()
        counted = [json.loads(line)["tokens"] for line in lines if '"tokens"' in line]
        assert row["tokens"] == counted[-1]
    assert "| mask | 5 | **" in page.read_text()
