"""Ctrl-C and a second SIGTERM end a command at once, and nothing that it started outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from cluster.config import RootConfig
from cluster.run.supervisor import supervise
from cluster.run.worker_entry_points import evaluate_checkpoint
from pretrain.config import TrainingConfig
from pretrain.run_start import RunStart
from tests.support.waiting import HANG_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from tests.integration.test_cluster_interrupt import body; body()"


def train_for_ever(config: TrainingConfig, start: RunStart) -> None:
    Path(config.run.dir, "training").touch()
    threading.Event().wait()


def body() -> None:
    config = RootConfig()
    config.run.name, config.run.dir = "r", os.getcwd()
    config.cluster.gpus_per_rank, config.cluster.start_timeout = 0, int(HANG_SECONDS)
    supervise(config, Console(), train_for_ever, evaluate_checkpoint)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A place for Ray's sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(number: signal.Signals, tmp_path: Path, short_folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(short_folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(tmp_path / "training", process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 3
        process.send_signal(number)
        if number == signal.SIGTERM:  # the first asks for a checkpoint, which this training never writes
            wait_for(tmp_path / "r" / ".stop", process)
            process.send_signal(number)
        said = process.communicate(timeout=HANG_SECONDS)[0]
    finally:
        process.kill()
    assert process.returncode != 0
    assert number == signal.SIGINT or "ended by SIGTERM" in said
    psutil.wait_procs(children, timeout=HANG_SECONDS)
    left = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert list(short_folder.glob("wv-*")) == []


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: path.exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
