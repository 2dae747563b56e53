"""Jobs of `worldvla submit` on a virtual Slurm: the real trainer under Ray across nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.run.training import last_reported_step
from pretrain.run_folder import RunFolder
from pretrain.telemetry.sinks import read_metrics
from tests.support.job_length import JobLength
from tests.support.libero_layout import demonstration, write_file
from tests.support.virtual_slurm import ENDED, VirtualSlurm

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}
NETWORK = ["model.layers=1", "model.hidden_size=32", "model.ffn_size=64", "model.heads=2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_file(folder / "demos" / "lift_demo.hdf5", [demonstration(24, seed=number) for number in range(3)])
    words = [f"source={folder}/demos", f"out={folder}/shards"]
    worldvla("prepare", *words)
    return folder / "shards"


def worldvla(*words: str, more: dict[str, str] | None = None) -> str:
    environment = {**os.environ, **ENVIRONMENT, **(more or {})}
    command = [sys.executable, "-m", "cluster.cli.main", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(slurm: VirtualSlurm, runs: Path, shards: Path, *words: str) -> int:
    """Submit the demo's training to two nodes, as the README does; the job's number."""
    readme = (ROOT / "README.md").read_text().splitlines()
    command = next(line.split() for line in readme if line.startswith("worldvla submit experiment=demo "))
    asked = [*command[2:], f"run.dir={runs}", f"data.url={shards}", *NETWORK, *words, "--json"]
    told = json.loads(worldvla("submit", *asked, more={"SLURM_CONF": slurm.environment["SLURM_CONF"]}))
    return int(told["job"])


def test_two_nodes_train_evaluate_and_leave_nothing(
    slurm: VirtualSlurm, shards: Path, tmp_path: Path
) -> None:
    job = submit(
        slurm,
        tmp_path,
        shards,
        "trainer.steps=4",
        "checkpointing.every=2",
        "eval.every=4",
        "eval.episodes=1",
        "eval.horizon=5",
    )
    told = slurm.await_state(job, *ENDED)
    log = (tmp_path / "two" / "slurm" / f"job-{job}.log").read_text()
    assert told["JobState"] == "COMPLETED", log
    assert told["NumNodes"] == "2"
    assert slurm.processes() == []
    steps = [
        record["step"] for record in read_metrics(tmp_path / "two" / "metrics.jsonl") if "loss" in record
    ]
    assert steps == [1, 2, 3, 4]
    results = json.loads((tmp_path / "two" / "eval" / "step_00000004" / "results.json").read_text())
    assert results["episodes"] == 1
    nodes = {path.stem for path in (tmp_path / "two" / "slurm").glob("ray-*/*.log")}
    assert len(nodes) == 2


def test_a_signal_and_a_lost_node_cost_no_step(
    slurm: VirtualSlurm, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["trainer.steps=1000000", "checkpointing.every=5", "checkpointing.keep_last=3", "eval.every=0"]
    words += ["optim.schedule=constant", "optim.warmup_steps=0", "optim.warmup_fraction=null"]
    length = JobLength(tmp_path / "length")
    monkeypatch.setenv("LAST_STEP", "1")  # for the check before the job is submitted
    asked = ["run.name=tried", "slurm.cpus_per_node=1", "parallel.tensor=1", "parallel.data=2"]
    asked += [f"slurm.venv={length.environment}", JobLength.WORD]
    job = submit(slurm, tmp_path, shards, *asked, *words)
    folder = RunFolder(tmp_path / "tried")

    def log() -> str:
        return "\n".join(path.read_text() for path in folder.path.glob("slurm/job-*.log"))

    slurm.await_while_active(job, lambda: last_reported_step(folder) >= 3, log)
    slurm.run("scancel", "--signal=USR1", "--batch", str(job))  # as Slurm does before the time limit
    slurm.restart_requeued(job, 1)
    slurm.await_while_active(job, lambda: happened(folder).count("resumed") == 1, log)
    stopped = next(event["step"] for event in events(folder) if event["event"] == "preempted")
    slurm.await_while_active(job, lambda: last_reported_step(folder) >= stopped + 12, log)

    nodes = slurm.run("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()
    slurm.lose_node(nodes[1])
    slurm.await_requeued(job, 2)
    last = last_reported_step(folder) + 3
    length.set(last)
    slurm.restart_requeued(job, 2)
    told = slurm.await_state(job, *ENDED)
    assert told["JobState"] == "COMPLETED", log()
    assert slurm.processes() == []
    resumed = [event["step"] for event in events(folder) if event["event"] == "resumed"]
    assert resumed[0] == stopped
    assert resumed[-1] > stopped
    assert len({path.name.rpartition("-")[2] for path in folder.path.glob("wandb/offline-run-*")}) == 1

    alone = ["parallel.tensor=1", "parallel.data=1", f"trainer.stop_after={last}"]
    torchrun(tmp_path, shards, "run.name=undisturbed", *alone, *words)
    expected = losses(tmp_path / "undisturbed")
    assert len(expected) == last
    assert losses(folder.path)[-1] == pytest.approx(expected[-1], abs=1e-5)


def torchrun(runs: Path, shards: Path, *words: str) -> None:
    """The trainer alone, in one process."""
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    environment = {**os.environ, **ENVIRONMENT, **alone, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    asked = ["experiment=demo", f"run.dir={runs}", f"data.url={shards}", *NETWORK, *words]
    command = [sys.executable, "-m", "pretrain.main", *asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]


def events(folder: RunFolder) -> list[dict[str, Any]]:
    if not folder.events.exists():
        return []
    return [json.loads(line) for line in folder.events.read_text().splitlines()]


def happened(folder: RunFolder) -> list[str]:
    return [event["event"] for event in events(folder)]
