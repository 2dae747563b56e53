"""`scancel` of a training under Ray on two nodes of a virtual Slurm: no process is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from data.config import PrepareConfig
from data.prepare.preparer import Preparer, prepare
from data.tokens.image import ImageTokenizer
from pretrain.telemetry.sinks import read_metrics
from tests.support.libero_layout import demonstration, write_file
from tests.support.virtual_slurm import ENDED, VirtualSlurm
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["experiment=demo", "nodes=2", "parallel.tensor=1", "parallel.data=2", "trainer.steps=100000"]
WORDS += ["model.layers=1", "model.hidden_size=32", "model.ffn_size=64", "model.heads=2", "run.name=r"]
WORDS += ["checkpointing.every=100000", "eval.every=0", "cluster.gpus_per_rank=0", "slurm.cpus_per_node=4"]


def test_scancel_leaves_no_process_on_any_node(slurm: VirtualSlurm, tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(24, seed=number) for number in range(2)])
    config = PrepareConfig(source=str(tmp_path / "demos"), out=str(tmp_path / "shards"))
    prepare(Preparer(config, ImageTokenizer.load(None)))
    environment = {**os.environ, "SLURM_CONF": slurm.environment["SLURM_CONF"], "PYTHONPATH": str(ROOT)}
    places = [f"run.dir={tmp_path}", f"data.url={tmp_path}/shards", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli.main", "submit", *WORDS, *places],
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    job = int(json.loads(done.stdout)["job"])
    log, metrics = tmp_path / "r" / "slurm" / f"job-{job}.log", tmp_path / "r" / "metrics.jsonl"

    def trains() -> bool:
        return metrics.exists() and any("loss" in record for record in read_metrics(metrics))

    slurm.await_while_active(job, trains, lambda: log.read_text())
    running = slurm.processes()
    assert sum("raylet" in line for line in running) >= 2, "Ray runs on both nodes"
    slurm.run("scancel", str(job))
    # All of them end by themselves: this Slurm's KillWait is longer than the wait.
    wait_until(lambda: slurm.processes() == [], lambda: "\n".join(slurm.processes()))
    assert slurm.await_state(job, *ENDED)["JobState"] == "CANCELLED"
