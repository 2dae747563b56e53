"""A damaged checkpoint that is set aside is no longer committed, and no file of it is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.checkpoint.location import CheckpointLocation
from tests.support.object_server import BUCKET, object_server


def commit_steps(location: CheckpointLocation, *steps: int) -> None:
    for step in steps:
        location.write(step, "rank_00000-1f2e3d4c.safetensors", [b"weights"], 7)
        location.commit(step, b"{}", "1f2e3d4c")


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "object store"])
def test_checkpoint_that_is_set_aside_keeps_its_files_until_it_is_saved_again(
    remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_server(monkeypatch):
        location = CheckpointLocation(f"s3://{BUCKET}/run" if remote else tmp_path)
        commit_steps(location, 2, 4)
        location.set_aside(4)
        assert location.steps() == [2]
        assert location.scan() == {2: True, 4: False}
        assert location.remove_incomplete() == []
        assert len(location._store.names("step_00000004")) == 3  # weights, manifest, DAMAGED
        location.commit(4, b"{}", "aaaabbbb")
        location.remove_other_attempts(4, "aaaabbbb")
        assert location.steps() == [2, 4]
        assert sorted(location._store.names("step_00000004")) == ["READY", "manifest-aaaabbbb.json"]


def test_files_of_a_checkpoint_whose_ready_is_damaged_are_not_taken_for_an_interrupted_save(
    tmp_path: Path,
) -> None:
    location = CheckpointLocation(tmp_path)
    commit_steps(location, 2, 4)
    location.write(4, "rank_00000-aaaabbbb.safetensors", [b"interrupted"], 11)
    ready = tmp_path / "step_00000002" / "READY"
    ready.write_bytes(ready.read_bytes().replace(b"1f2e3d4c", b"1f2e3d4x"))
    assert location.remove_incomplete() == ["step_00000004"]
    assert {path.name for path in ready.parent.iterdir()} == {
        "READY",
        "manifest-1f2e3d4c.json",
        "rank_00000-1f2e3d4c.safetensors",
    }
    assert not (tmp_path / "step_00000004" / "rank_00000-aaaabbbb.safetensors").exists()
