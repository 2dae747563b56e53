"""A whole supervised run on Ray with a stand-in for the training: progress, W&B, evaluations, summary."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.config import RootConfig
from cluster.eval_group import EvaluationJob, Progress
from cluster.failures import CommandFailedError
from cluster.supervisor import supervise
from data.errors import InputError
from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder

LAST, BROKEN = 3, 2


def train_and_commit(config: TrainingConfig) -> None:
    folder = RunFolder.of(config.run)
    for step in range(1, LAST + 1):
        record = {"step": step, "loss": 1 / step, "tokens_per_second": 10.0, "mfu": 0.1}
        with folder.metrics.open("a") as metrics:
            metrics.write(json.dumps(record) + "\n")
        checkpoint = folder.checkpoints / f"step_{step:08d}"
        checkpoint.mkdir()
        (checkpoint / "READY").touch()


def evaluate_by_counting(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    progress(1, 1)
    if job.step == BROKEN:
        raise InputError("there is nothing to see here")
    killed = job.out.with_name("killed")
    if job.step == LAST and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)  # the worker is replaced
    results = {"step": job.step, "suite": "none", "tasks": [0], "episodes": 1, "successes": 1, "errors": 0}
    results |= {"success_rate": 1.0, "imagined": job.imagine, "pid": os.getpid()}
    job.out.mkdir(parents=True)
    (job.out / "results.json").write_text(json.dumps(results))
    return results


@pytest.fixture
def config(tmp_path: Path) -> RootConfig:
    config = RootConfig()
    config.run.name, config.run.dir = "r", str(tmp_path)
    config.data.url = "unused"
    config.trainer.steps = LAST
    config.checkpointing.every = 1
    config.eval.every = 1
    config.cluster.gpus_per_rank = 0
    return config


def test_checkpoints_are_evaluated_beside_the_training_and_failures_told_at_the_end(
    config: RootConfig,
) -> None:
    shown = io.StringIO()
    with pytest.raises(CommandFailedError, match=r"^the evaluation of step 2 failed: there is nothing"):
        supervise(config, Console(file=shown), train_and_commit, evaluate_by_counting)

    folder = RunFolder.of(config.run)
    results = {step: json.loads((folder.evaluation(step) / "results.json").read_text()) for step in (1, LAST)}
    assert [results[step]["imagined"] for step in (1, LAST)] == [False, True]
    assert os.getpid() not in {result["pid"] for result in results.values()}
    summary = folder.read_summary()
    assert [entry["step"] for entry in summary["evaluations"]] == [1, LAST]
    assert summary["evaluations"][0]["success_rate"] == 1.0
    assert list((folder.path / "wandb").glob("offline-run-*"))
    assert "nothing to see" in (folder.path / "logs" / "eval_00000002.log").read_text()
    assert f"train {LAST}/{LAST}" in shown.getvalue()
    assert "evaluate step 3 1/1 1 of 1 episodes succeeded" in shown.getvalue()


def too_late(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    shutil.rmtree(job.checkpoint)  # what the trainer does with `checkpointing.keep_last`
    raise InputError("no committed checkpoint")


def test_an_evaluation_whose_checkpoint_was_removed_says_so(config: RootConfig) -> None:
    config.checkpointing.keep_last, config.eval.every = 1, LAST
    with pytest.raises(CommandFailedError, match=r"step 3 failed: its checkpoint was removed .*keep_last=1"):
        supervise(config, Console(file=io.StringIO()), train_and_commit, too_late)


def all_errors(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    results = {"step": job.step, "suite": "none", "tasks": [0], "episodes": 1, "successes": 0, "errors": 1}
    job.out.mkdir(parents=True)
    (job.out / "results.json").write_text(json.dumps({**results, "success_rate": None}))
    return {**results, "success_rate": None}


def test_a_run_in_a_relative_folder_whose_episodes_all_end_in_errors_still_ends_well(
    config: RootConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/proc/nowhere")  # nothing may need a home folder
    config.run.dir, config.eval.every = "some runs", LAST
    folder = supervise(config, Console(file=io.StringIO()), train_and_commit, all_errors)
    assert [entry["errors"] for entry in folder.read_summary()["evaluations"]] == [1]


def test_two_commands_in_one_run_folder_are_refused(config: RootConfig) -> None:
    folder = RunFolder.of(config.run)
    folder.open(config)
    with (folder.path / ".supervisor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another command is training in this folder"):
            supervise(config, Console(file=io.StringIO()), train_and_commit, evaluate_by_counting)


def test_too_few_cpus_are_refused_before_anything_is_written(config: RootConfig) -> None:
    config.parallel.data, config.cluster.cpus = 4, 2
    with pytest.raises(InputError, match=r"cluster.cpus offers 2 CPUs to Ray, the run needs 5 \(4 training"):
        supervise(config, Console(file=io.StringIO()), train_and_commit, evaluate_by_counting)
    assert not RunFolder.of(config.run).path.exists()
