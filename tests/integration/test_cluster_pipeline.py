"""Jobs that wait for each other, and job arrays, on a virtual Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pretrain.settings import read_yaml
from tests.support.libero_layout import demonstration, write_file
from tests.support.virtual_slurm import ENDED, VirtualSlurm

ROOT = Path(__file__).resolve().parents[2]
NETWORK = ["model.layers=1", "model.hidden_size=32", "model.ffn_size=64", "model.heads=2"]
SMALL = ["experiment=demo", "parallel.tensor=1", "parallel.data=1", *NETWORK, "trainer.steps=2"]
SMALL += ["checkpointing.every=2", "eval.every=0", "cluster.gpus_per_rank=0", "slurm.cpus_per_node=4"]


def submit(slurm: VirtualSlurm, folder: Path, *words: str) -> dict[str, int]:
    """Submit from a folder that relative paths start from; stage -> number of its job."""
    environment = {
        **os.environ,
        "SLURM_CONF": slurm.environment["SLURM_CONF"],
        "PYTHONPATH": str(ROOT),
        "MUJOCO_GL": "osmesa",
        "PYOPENGL_PLATFORM": "osmesa",
    }
    command = [sys.executable, "-m", "cluster.cli.main", "submit", *SMALL, *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["stages"]


def test_prepare_then_a_sweep_then_the_evaluation_of_each_run(slurm: VirtualSlurm, tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(24, seed=number) for number in range(3)])
    jobs = submit(
        slurm,
        tmp_path,
        "stages=[prepare,train,eval]",
        "run.dir=.",
        "run.name=swept",
        "data.url=shards",
        "prepare.source=demos",
        "sweep='optim.lr=1e-3,1e-4'",
        "final_eval.episodes=1",
        "final_eval.horizon=5",
    )
    assert slurm.job(jobs["train"])["Dependency"].startswith(f"afterok:{jobs['prepare']}")
    assert slurm.job(jobs["eval"])["Dependency"].startswith(f"aftercorr:{jobs['train']}")
    for stage, number in jobs.items():
        logs = tmp_path / "swept" / "slurm"
        for task in ("",) if stage == "prepare" else ("_0", "_1"):
            state = slurm.await_state(f"{number}{task}", *ENDED)["JobState"]
            shown = "\n".join(path.read_text() for path in logs.glob(f"*-{number}*.log"))
            assert state == "COMPLETED", shown
    rates = [read_yaml(tmp_path / f"swept-{number}" / "config.yaml")["optim"]["lr"] for number in range(2)]
    assert rates == [1e-3, 1e-4]
    for number in range(2):
        folder = tmp_path / f"swept-{number}" / "eval" / "step_00000002-robosuite_lift"
        assert json.loads((folder / "results.json").read_text())["episodes"] == 1
    assert slurm.processes() == []


def test_what_follows_a_failed_stage_leaves_the_queue(slurm: VirtualSlurm, tmp_path: Path) -> None:
    jobs = submit(
        slurm,
        tmp_path,
        "stages=[prepare,train,eval]",
        f"run.dir={tmp_path}",
        "run.name=r",
        f"data.url={tmp_path}/shards",
        f"prepare.source={tmp_path}/nothing",
    )
    found = {stage: slurm.await_state(number, *ENDED)["JobState"] for stage, number in jobs.items()}
    assert found == {"prepare": "FAILED", "train": "CANCELLED", "eval": "CANCELLED"}
    assert f"{tmp_path}/nothing" in (tmp_path / "r" / "slurm" / f"prepare-{jobs['prepare']}.log").read_text()
    assert not (tmp_path / "r" / "config.yaml").exists()


def test_a_job_that_goes_back_into_the_queue_keeps_the_next_waiting(
    slurm: VirtualSlurm, tmp_path: Path
) -> None:
    first = tmp_path / "first.sh"
    first.write_text(
        f"#!/bin/bash\n#SBATCH --requeue --output={tmp_path}/log\n"
        'if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then scontrol requeue "${SLURM_JOB_ID}"; exit 85; fi\n'
    )
    number = int(slurm.run("sbatch", "--parsable", str(first)))
    waits = [f"--dependency=afterok:{number}", "--kill-on-invalid-dep=yes", f"--output={tmp_path}/log"]
    following = int(slurm.run("sbatch", "--parsable", *waits, "--wrap=true"))
    slurm.await_requeued(number)
    assert slurm.job(following)["JobState"] == "PENDING"
    slurm.restart_requeued(number)
    assert slurm.await_state(number, *ENDED)["JobState"] == "COMPLETED"
    assert slurm.await_state(following, *ENDED)["JobState"] == "COMPLETED"
