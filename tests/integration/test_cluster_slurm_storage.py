"""A Slurm job whose shards and checkpoints lie in an object store, which is stopped and started again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.run.training import last_reported_step
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.run_folder import RunFolder
from tests.integration.test_cluster_storage import upload
from tests.support.object_server import BUCKET, ObjectServer, object_server
from tests.support.training_case import measured, overrides, settings, train, write_dataset
from tests.support.virtual_slurm import ENDED, VirtualSlurm
from tests.support.waiting import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
JOB = ["nodes=2", "cluster.gpus_per_rank=0", "slurm.cpus_per_node=2", "eval.every=0"]
LAYOUT = (1, 2, 3)


def submit(slurm: VirtualSlurm, *words: str) -> int:
    environment = {**os.environ, "SLURM_CONF": slurm.environment["SLURM_CONF"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cluster.cli.main", "submit", *JOB, *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["job"])


def refuse_from(server: ObjectServer, part: str) -> threading.Event:
    """Let the server refuse all requests from the first upload on that has `part` in its path."""
    begun = threading.Event()

    def refuse(method: str, path: str) -> int | None:
        if method == "PUT" and part in path:
            begun.set()
        return 503 if begun.is_set() else None

    server.refuse = refuse
    return begun


def await_client(address: tuple[str, int]) -> None:
    """Wait until a client has tried to reach a server that is gone."""
    with socket.create_server(address) as gate:
        gate.settimeout(HANG_SECONDS)
        gate.accept()[0].close()


def test_a_job_waits_for_its_object_store(
    slurm: VirtualSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_dataset(tmp_path / "shards")
    plain = settings(tmp_path / "plain", local, LAYOUT)
    expected = [line["loss"] for line in measured(train(plain))]
    config = settings(tmp_path, f"s3://{BUCKET}/shards", LAYOUT)
    config.checkpointing.url = f"s3://{BUCKET}/${{run.name}}"
    folder = RunFolder.of(config.run)
    with object_server(monkeypatch) as server:
        upload(Path(local), config.data.url)
        begun = refuse_from(server, "step_00000004/")
        job = submit(slurm, *overrides(config))

        def log() -> str:
            return "\n".join(path.read_text() for path in folder.path.glob("slurm/job-*.log"))

        slurm.await_while_active(job, begun.is_set, log)
        server.stop()  # in the middle of a save
        await_client(server.address)
        # Held up by its next save.
        slurm.await_while_active(job, lambda: last_reported_step(folder) == config.trainer.steps, log)
        server.refuse = lambda method, path: None
        server.start_again()
        told = slurm.await_state(job, *ENDED)
        assert told["JobState"] == "COMPLETED", log()
        assert slurm.processes() == []
        assert CheckpointLocation(f"s3://{BUCKET}/run").steps() == [2, 4, 6]
        assert any(method == "GET" and "/shards/shard-" in path for method, path in server.requests)
    assert [line["loss"] for line in measured(folder)] == expected
    assert not folder.events.exists() or "failed" not in folder.events.read_text(), "nobody was started again"
