"""What a run goes on from: its own checkpoints, and not those of another run in the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from pretrain.checkpoint.location import CheckpointPlace, step_folder
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.origin import Origin, choose_origin
from pretrain.config import CheckpointingConfig
from pretrain.model.config import ModelConfig


def committed(root: Path, step: int, metadata: dict[str, Any]) -> str:
    folder = step_folder(root, step)
    folder.mkdir(parents=True)
    Manifest(step, step, metadata, {}, {}).write(folder)
    return str(folder)


def origin(root: Path, run: str, url: str | None, resume: str = "auto") -> Origin | None:
    settings = CheckpointingConfig(url=url, resume=resume)
    return choose_origin(settings, ModelConfig(), CheckpointPlace(url or root), run)


def test_a_place_of_another_run_is_refused(tmp_path: Path) -> None:
    newest = committed(tmp_path, 2, {"config": {"run": {"name": "first"}}})
    assert origin(tmp_path, "first", str(tmp_path)) == Origin(newest, resumes=True)
    for resume in ("auto", "elsewhere/step_00000004"):  # it would write there all the same
        with pytest.raises(InputError, match="holds checkpoints of the run first, this one is second; give"):
            origin(tmp_path, "second", str(tmp_path), resume)


def test_a_run_folder_may_be_renamed(tmp_path: Path) -> None:
    newest = committed(tmp_path, 2, {"config": {"run": {"name": "first"}}})
    assert origin(tmp_path, "second", None) == Origin(newest, resumes=True)


def test_a_checkpoint_that_names_no_run_is_taken(tmp_path: Path) -> None:
    newest = committed(tmp_path, 2, {"tokens": 0})
    assert origin(tmp_path, "second", str(tmp_path)) == Origin(newest, resumes=True)
