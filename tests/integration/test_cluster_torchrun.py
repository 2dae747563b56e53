"""`slurm/torchrun.sbatch` on two nodes of a virtual Slurm: the trainer across nodes without Ray."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cluster.slurm.sbatch import NETWORKS
from data.config import PrepareConfig
from data.prepare.preparer import Preparer, prepare
from data.tokens.image import ImageTokenizer
from pretrain.telemetry.sinks import read_metrics
from tests.support.job_length import JobLength
from tests.support.libero_layout import demonstration, write_file
from tests.support.virtual_slurm import ENDED, VirtualSlurm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "torchrun.sbatch"
WORDS = [
    "experiment=demo",
    "parallel.tensor=1",
    "parallel.data=2",
    "checkpointing.every=1000",
    "eval.every=0",
]
WORDS += ["model.layers=1", "model.hidden_size=32", "model.ffn_size=64", "model.heads=2", "run.name=plain"]
WORDS += ["trainer.steps=1000000", JobLength.WORD]


def test_two_nodes_are_told_to_end_requeued_and_go_on(slurm: VirtualSlurm, tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(24, seed=number) for number in range(3)])
    config = PrepareConfig(source=str(tmp_path / "demos"), out=str(tmp_path / "shards"))
    prepare(Preparer(config, ImageTokenizer.load(None)))
    settings = [f"run.dir={tmp_path}", f"data.url={tmp_path}/shards"]
    length = JobLength(tmp_path / "length")
    more = {"VENV": str(length.environment), "GPUS": "1", "NETWORK": "tcp", "PYTHONPATH": str(ROOT)}
    options = ["--parsable", "--nodes=2", "--cpus-per-task=2", f"--chdir={ROOT}", f"--output={tmp_path}/log"]
    job = int(slurm.run("sbatch", *options, str(SCRIPT), *WORDS, *settings, more=more))
    metrics = tmp_path / "plain" / "metrics.jsonl"

    def steps() -> list[int]:
        return [r["step"] for r in read_metrics(metrics) if "loss" in r] if metrics.exists() else []

    def log() -> str:
        return (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""

    slurm.await_while_active(job, lambda: bool(steps()), log)
    slurm.run("scancel", "--batch", "--signal=USR1", str(job))  # what Slurm sends before the time limit
    slurm.await_requeued(job)
    reached = steps()[-1]
    assert (tmp_path / "plain" / "checkpoints" / f"step_{reached:08d}" / "READY").exists()
    assert "rank 0 ended with 85" in log() or "rank 1 ended with 85" in log(), log()
    length.set(reached + 3)
    slurm.restart_requeued(job)
    ended = slurm.await_state(job, *ENDED)
    assert ended["JobState"] == "COMPLETED", f"{ended} {log()}"
    assert steps() == list(range(1, reached + 4))
    assert slurm.processes() == []


def test_the_networks_variables_are_those_of_submit() -> None:
    text = SCRIPT.read_text()
    for name, variables in NETWORKS.items():
        assigned = " ".join(f"{key}={value}" for key, value in variables.items())
        assert f"  {name}) export {assigned} ;;\n" in text


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
