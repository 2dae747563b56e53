"""What a run resumes from: its own checkpoints, and not those of another run at the same location."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from pretrain.checkpoint.location import CheckpointLocation, step_folder
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.origin import Origin, choose_origin
from pretrain.config import CheckpointingConfig
from pretrain.model.config import ModelConfig


def commit_step(root: Path, step: int, metadata: dict[str, Any]) -> str:
    folder = step_folder(root, step)
    folder.mkdir(parents=True)
    Manifest(step, step, metadata, {}, {}).write(folder)
    return str(folder)


def origin(root: Path, run: str, url: str | None, resume: str = "auto") -> Origin | None:
    settings = CheckpointingConfig(url=url, resume=resume)
    return choose_origin(settings, ModelConfig(), CheckpointLocation(url or root), run)


def test_location_of_another_run_is_refused(tmp_path: Path) -> None:
    newest = commit_step(tmp_path, 2, {"config": {"run": {"name": "first"}}})
    assert origin(tmp_path, "first", str(tmp_path)) == Origin(newest, resumes=True)
    for resume in ("auto", "elsewhere/step_00000004"):  # it would write there as well
        with pytest.raises(InputError, match="holds checkpoints of the run first, this one is second; give"):
            origin(tmp_path, "second", str(tmp_path), resume)


def test_run_folder_may_be_renamed(tmp_path: Path) -> None:
    newest = commit_step(tmp_path, 2, {"config": {"run": {"name": "first"}}})
    assert origin(tmp_path, "second", None) == Origin(newest, resumes=True)


def test_checkpoint_without_the_name_of_a_run_is_accepted(tmp_path: Path) -> None:
    newest = commit_step(tmp_path, 2, {"tokens": 0})
    assert origin(tmp_path, "second", str(tmp_path)) == Origin(newest, resumes=True)
