from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.run.evaluation_group import _EvaluationWorker


def test_relative_paths_mean_the_same_in_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of an existing cluster starts its processes wherever it was started itself."""
    monkeypatch.chdir("/")
    _EvaluationWorker(lambda job, progress: {}, tmp_path, "eval_00000001", str(tmp_path))
    assert Path(os.getcwd()) == tmp_path
    _EvaluationWorker(lambda job, progress: {}, tmp_path, "eval_00000001", "/not/on/this/machine")
    assert Path(os.getcwd()) == tmp_path
