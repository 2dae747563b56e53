"""A damaged checkpoint is set aside: it is none any more, and nothing of it is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.checkpoint.location import CheckpointPlace
from tests.support.object_server import BUCKET, object_server


def committed(place: CheckpointPlace, *steps: int) -> None:
    for step in steps:
        place.write(step, "rank_00000-1f2e3d4c.safetensors", [b"weights"], 7)
        place.commit(step, b"{}", "1f2e3d4c")


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "object store"])
def test_a_damaged_checkpoint_is_set_aside(
    remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_server(monkeypatch):
        place = CheckpointPlace(f"s3://{BUCKET}/run" if remote else tmp_path)
        committed(place, 2, 4)
        place.set_aside(4)
        assert place.steps() == [2]
        assert place.found() == {2: True, 4: False}
        assert place.clean() == []
        assert len(place._store.names("step_00000004")) == 3  # weights, manifest, DAMAGED
        place.commit(4, b"{}", "aaaabbbb")
        place.tidy(4, "aaaabbbb")
        assert place.steps() == [2, 4]
        assert sorted(place._store.names("step_00000004")) == ["READY", "manifest-aaaabbbb.json"]
