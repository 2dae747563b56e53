"""The command that measures on a GPU, whole and small on a CPU.

Training steps and decoding take longest and are left out here: `test_benchmarks` runs them at their smallest
sizes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_parts import ON_CPU

ROOT = Path(__file__).resolve().parents[2]
PARTS = [part.name for part in ON_CPU if part.name not in ("step_7b", "decode")]

pytestmark = pytest.mark.timeout(1200)  # each part imports torch anew


def test_a_small_run_ends_with_the_goals_not_measured(tmp_path: Path) -> None:
    words = [f"out={tmp_path / 'results'}", "minutes=19", "device=cpu", f"parts={','.join(PARTS)}"]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    found = json.loads((tmp_path / "results/gpu.json").read_text())
    assert ended.returncode == 0, ended.stdout + ended.stderr + json.dumps(found, indent=1)[-5000:]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["gpu.json"]
    assert found["finished"] is True
    assert {name: part["state"] for name, part in found["parts"].items()} == dict.fromkeys(PARTS, "done")
    assert all(part["result"]["finished"] is True for part in found["parts"].values())
    assert found["goals"]
    assert {goal["verdict"] for goal in found["goals"]} == {"not measured"}
    assert ended.stdout.count("not measured") == len(found["goals"])
    results = {name: part["result"] for name, part in found["parts"].items()}
    assert results["tests"]["counts"]["failed"] == 0
    assert results["tests"]["counts"]["skipped"] > 50, "all of tests/gpu"
    assert [row["part"] for row in results["start_up"]["rows"]] == [
        *("imports", "process groups", "weights", "imports to weights", "first step", "second step"),
    ]
    assert {row["cameras"] for row in results["frames"]["rows"]} == {"agent", "agent, wrist"}
    assert all(row["seconds"] > 0 for row in results["start_up"]["rows"])
