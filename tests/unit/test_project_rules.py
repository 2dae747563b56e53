"""Rules that the project keeps about itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FILE = 400


def tracked_files(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def test_no_source_file_is_longer_than_400_lines() -> None:
    files = tracked_files("*.py")
    assert len(files) > 30
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


@pytest.mark.parametrize("folder", ["data", "pretrain", "eval", "cluster"])
def test_packages_keep_no_code_in_init(folder: str) -> None:
    for path in (ROOT / folder).rglob("__init__.py"):
        text = path.read_text().strip()
        assert text.startswith('"""'), f"{path} has no docstring"
        assert text.endswith('"""'), f"{path} holds more than its docstring"


def test_no_module_is_named_after_a_package() -> None:
    packages = {"data", "eval", "cluster", "pretrain"}
    clashes = [path for path in tracked_files("*.py") if path.stem in packages]
    assert clashes == []


def test_configs_and_slurm_hold_no_python() -> None:
    assert tracked_files("configs/*.py", "slurm/*.py") == []
