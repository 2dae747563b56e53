"""Ctrl-C and SIGTERM end a command at once, and nothing that it started outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.config import ClusterConfig, RootConfig
from cluster.session import open_session
from cluster.topology import place
from cluster.train_group import run_train_group
from pretrain.config import TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from tests.integration.test_cluster_interrupt import body; body()"


def train_for_ever(config: TrainingConfig) -> None:
    Path(config.run.dir, "training").write_text(str(os.getpid()))
    time.sleep(600)


def body() -> None:
    config = RootConfig()
    config.run.dir = os.getcwd()
    with open_session(ClusterConfig(), place(config, gpus_found=0)) as session:
        Path("session").write_text(str(session.folder))
        run_train_group(config, session, Path("logs"), train_for_ever)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(tmp_path / "training", process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 3
        process.send_signal(number)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0
    psutil.wait_procs(children, timeout=10)
    assert [
        child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    ] == []
    assert not Path((tmp_path / "session").read_text()).exists()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the training did not start"
        time.sleep(0.1)
