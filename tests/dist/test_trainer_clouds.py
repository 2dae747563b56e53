"""A training with data and checkpoints in gs:// or az:// has the losses of one that uses folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.storage.bulk_store import open_bulk
from pretrain.checkpoint.location import CheckpointLocation
from tests.support import training_case as case
from tests.support.clouds import cloud
from tests.support.ranks import run_ranks
from tests.support.training_case import measured


def _upload(folder: str, url: str) -> None:
    """Runs in a process of its own: a process that has used a store may not fork."""
    store = open_bulk(url)
    for path in sorted(Path(folder).iterdir()):
        store.write_blocks(path.name, [path.read_bytes()], path.stat().st_size)


def _steps(url: str) -> list[int]:
    return CheckpointLocation(url).steps()


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_training_reads_from_and_resumes_from_object_storage(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = case.write_dataset(tmp_path / "shards")
    with cloud(scheme, tmp_path, monkeypatch) as storage:
        run_ranks(_upload, 1, local, f"{storage.url}/shards")
        for layout, stop in (((1, 2, 3), 4), ((2, 1, 1), None)):
            config = case.settings(tmp_path, f"{storage.url}/shards", layout)
            config.checkpointing.url, config.checkpointing.keep_last = f"{storage.url}/run", 2
            config.trainer.stop_after = stop
            folder = case.train(config)
        assert run_ranks(_steps, 1, config.checkpointing.url) == [[4, 6]]
    plain = case.train(case.settings(tmp_path / "plain", local, (1, 1, 1)))
    losses = [[line["loss"] for line in measured(each)] for each in (folder, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
