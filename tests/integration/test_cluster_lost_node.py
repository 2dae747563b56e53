"""A training on an existing Ray cluster, one of whose nodes goes and comes back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.config import RootConfig
from cluster.resources.ray_session import worker_environment
from cluster.resources.run_resources import required_resources
from cluster.run.worker_entry_points import train_rank
from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder
from pretrain.run_start import RunStart
from tests.integration.test_cluster_restarts import LAST, events, run, under_ray
from tests.support.training_case import BeforeStep, measured, train, write_dataset
from tests.support.waiting import HANG_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from tests.integration.test_cluster_lost_node import body; body()"


def in_acts(config: TrainingConfig, start: RunStart) -> None:
    """Before step 4 with two ranks: wait for the end of a node. Before step 6 with one: for its return."""
    folder = Path(config.run.dir)

    def act(step: int) -> None:
        if config.parallel.data == 2 and step == 4 and not (folder / "alone").exists():
            (folder / "together").touch()
            threading.Event().wait()
        if config.parallel.data == 1 and step == 6:
            (folder / "alone").touch()
            wait_until(RunFolder.of(config.run).stop_request.exists)
            time.sleep(1.1)  # rank 0 looks for the file once a second

    train_rank(config, start, [BeforeStep(act)])


def body() -> None:
    """The command, in a process of its own: Ray reads how to authenticate only once."""
    folder, url, address = (os.environ[name] for name in ("FOLDER", "URL", "ADDRESS"))
    run(under_ray(Path(folder), url, address=address, least_data=1, node_timeout=15.0), in_acts)


class Nodes:
    """Ray's nodes as jobs start them, all on this machine."""

    def __init__(self, folder: Path) -> None:
        self._log = (folder / "nodes.log").open("ab")
        self.environment = {**os.environ, **worker_environment(required_resources(RootConfig(), 0))}
        self.environment |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
        self.environment["RAY_health_check_period_ms"] = "500"  # a lost node is noticed in seconds
        self.port = free_port()
        self.started = [self._start("--head", f"--port={self.port}", "--include-dashboard=false")]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self) -> None:
        """Start one more node."""
        self.started.append(self._start(f"--address={self.address}"))

    def kill(self) -> None:
        """Kill the newest node with all that runs on it, as a power cut would."""
        process = self.started.pop()
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.wait()

    def await_all(self) -> None:
        """Wait until Ray knows all of them."""
        words = [
            sys.executable,
            "-m",
            "cluster.resources.await_nodes",
            self.address,
            str(len(self.started)),
            str(HANG_SECONDS),
        ]
        subprocess.run(words, env=self.environment, check=True)

    def close(self) -> None:
        while self.started:
            self.started[-1].terminate()
            self.started.pop().wait()
        self._log.close()

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        own = ("--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=80000000")
        command = [sys.executable, "-m", "cluster.resources.ray_node", *own, *options]
        return subprocess.Popen(command, env=self.environment, stdout=self._log, stderr=self._log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    opened = Nodes(tmp_path)
    try:
        yield opened
    finally:
        opened.close()


def test_a_lost_node_shrinks_the_training_and_its_return_lets_it_grow(tmp_path: Path, nodes: Nodes) -> None:
    url = write_dataset(tmp_path / "shards")
    nodes.add()
    nodes.await_all()
    environment = {**nodes.environment, "FOLDER": str(tmp_path), "URL": url, "ADDRESS": nodes.address}
    command = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        wait_until(lambda: (tmp_path / "together").exists() or command.poll() is not None)
        nodes.kill()
        wait_until(lambda: (tmp_path / "alone").exists() or command.poll() is not None)
        nodes.add()
        said = command.communicate(timeout=HANG_SECONDS)[0].decode()
    finally:
        command.kill()
    assert command.returncode == 0, said
    config = under_ray(tmp_path, url)
    folder = RunFolder.of(config.run)
    told = [(event["event"], event.get("data")) for event in events(folder)]
    assert [each for each in told if each[0] in ("shrunk", "grown")] == [("shrunk", 1), ("grown", 2)]
    config.run.dir = str(tmp_path / "plain")
    undisturbed = [line["loss"] for line in measured(train(config))]
    assert len(undisturbed) == LAST
    assert [line["loss"] for line in measured(folder)] == pytest.approx(undisturbed, abs=1e-5)
