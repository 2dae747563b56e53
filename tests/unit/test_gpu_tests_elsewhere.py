"""`tests/gpu` runs on a lent machine: another Python, few packages, none of the project's settings."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PYTHON = (3, 11)
# Of other parts of the project and of its test suite, pytest's plugins included.
ABSENT = (
    *("ray", "wandb", "transformers", "torchmetrics", "matplotlib", "websockets", "pyarrow", "av"),
    *("robosuite", "libero", "mujoco", "gymnasium", "imageio", "scipy", "numba", "cv2", "bddl"),
    *("moto", "flask", "boto3", "hypothesis", "xdist", "pytest_timeout", "h5py"),
)
PROGRAM = f"""
import sys

sys.modules.update(dict.fromkeys({ABSENT}))  # an import of them fails as if they were not installed
from benchmarks.gpu_tests import main

sys.exit(main(["--device", "cpu", "--out", sys.argv[1]]))
"""


def test_every_test_is_found_and_skipped_without_the_packages_of_other_parts(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "out.json")]
    ended = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["counts"].keys() == {"passed", "failed", "skipped"}
    assert found["counts"]["passed"] == found["counts"]["failed"] == 0
    files = {name.partition("::")[0].split("/")[-1] for name in found["skipped"]}
    assert files == {path.name for path in (ROOT / "tests/gpu").glob("test_*.py")}
    reasons = {reason for name, reason in found["skipped"].items() if "test_prepare_gpu" not in name}
    assert reasons == {"Skipped: needs a CUDA device"}
    of_prepare = [reason for name, reason in found["skipped"].items() if "test_prepare_gpu" in name]
    assert of_prepare == ["Skipped: prepares on workers of Ray, which is not installed"]


@pytest.mark.parametrize("folder", ["data", "pretrain", "eval", "cluster", "benchmarks", "tests"])
def test_sources_are_of_the_oldest_python(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        ast.parse(path.read_text("utf-8"), str(path), feature_version=OLDEST_PYTHON)


@pytest.mark.parametrize("source", ["type Number = int", "def first[T](x: T) -> T: ..."])
def test_the_rule_of_the_oldest_python_finds_newer_syntax(source: str) -> None:
    with pytest.raises(SyntaxError):
        ast.parse(source, feature_version=OLDEST_PYTHON)
