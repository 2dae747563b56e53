"""A training under Ray whose shards and checkpoints lie in an object store that goes away for a while."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.run.worker_entry_points import train_rank
from data.storage.bulk_store import open_bulk
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder
from pretrain.run_start import RunStart
from tests.integration.test_cluster_restarts import run, under_ray
from tests.support.object_server import BUCKET, object_server
from tests.support.training_case import BeforeStep, measured, train, write_dataset
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("preloaded_workers")

OUTAGE = 4  # requests that are refused: fewer than one request is retried


def with_an_outage(config: TrainingConfig, start: RunStart) -> None:
    """Train with an outage that begins after step 4."""
    folder = Path(config.run.dir)

    def act(step: int) -> None:
        if step == 4:
            (folder / "go").touch()
            wait_until((folder / "gone").exists)

    train_rank(config, start, [BeforeStep(act)])


def test_an_outage_of_the_object_store_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write_dataset(tmp_path / "shards")
    with object_server(monkeypatch) as server:
        url = f"s3://{BUCKET}/shards"
        upload(Path(local), url)
        config = under_ray(tmp_path, url)
        config.checkpointing.url = f"s3://{BUCKET}/run"
        refused: list[str] = []

        def refuse(method: str, path: str) -> int | None:
            if len(refused) >= OUTAGE:
                return None
            refused.append(path)
            return 503

        def outage() -> None:
            wait_until((tmp_path / "go").exists)
            server.refuse = refuse
            (tmp_path / "gone").touch()

        threading.Thread(target=outage, daemon=True).start()
        run(config, with_an_outage)
        assert CheckpointLocation(config.checkpointing.url).steps() == [2, 4, 6, 8, 10]
    assert len(refused) >= OUTAGE
    folder = RunFolder.of(config.run)
    plain = under_ray(tmp_path / "plain", local)
    assert [line["loss"] for line in measured(folder)] == [line["loss"] for line in measured(train(plain))]


def upload(folder: Path, url: str) -> None:
    store = open_bulk(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(str(path.relative_to(folder)), path.read_bytes())
