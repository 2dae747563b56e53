"""A whole supervised run on Ray with a stand-in for the training: progress, W&B, evaluations, summary."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.config import RootConfig
from cluster.failures import CommandFailedError
from cluster.run.evaluation_group import EvaluationJob, Progress
from cluster.run.supervisor import supervise
from data.errors import InputError
from data.storage.store import open_store
from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder
from pretrain.run_lock import exclusive_access
from pretrain.run_start import RunStart
from tests.support.object_server import BUCKET, object_server
from tests.support.waiting import HANG_SECONDS, wait_until

LAST, BROKEN = 3, 2

pytestmark = pytest.mark.usefixtures("preloaded_workers")


def train_and_commit(config: TrainingConfig, start: RunStart) -> None:
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
        killed.parent.mkdir(exist_ok=True)
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)  # the worker is replaced
    results = {"step": job.step, "suite": "none", "tasks": [0], "episodes": 1, "successes": 1, "errors": 0}
    results |= {"success_rate": 1.0, "imagined": job.settings.imagine_frames > 0, "pid": os.getpid()}
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
    config.cluster.gpus_per_rank, config.cluster.start_timeout = 0, int(HANG_SECONDS)
    return config


def train_and_commit_to_store(config: TrainingConfig, start: RunStart) -> None:
    assert config.checkpointing.url is not None
    for step in range(1, LAST + 1):
        open_store(config.checkpointing.url).write(f"step_{step:08d}/READY", b"%d" % step)


def evaluate_by_reading(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    progress(1, 1)
    ready = open_store(job.checkpoint).read("READY").decode()
    results = {"step": job.step, "suite": "none", "tasks": [0], "episodes": 1, "successes": 1, "errors": 0}
    job.out.mkdir(parents=True)
    (job.out / "results.json").write_text(json.dumps(results | {"success_rate": 1.0, "read": ready}))
    return results | {"success_rate": 1.0}


def test_checkpoints_in_an_object_store_are_evaluated_beside_the_training(
    config: RootConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_server(monkeypatch):
        config.checkpointing.url = f"s3://{BUCKET}/r"
        supervise(config, Console(file=io.StringIO()), train_and_commit_to_store, evaluate_by_reading)
    folder = RunFolder.of(config.run)
    found = {
        step: json.loads((folder.evaluation(step) / "results.json").read_text())["read"]
        for step in range(1, LAST + 1)
    }
    assert found == {1: "1", 2: "2", 3: "3"}


def test_checkpoints_are_evaluated_beside_the_training_and_failures_told_at_the_end(
    config: RootConfig,
) -> None:
    shown = io.StringIO()
    with pytest.raises(CommandFailedError, match=r"^the evaluation of step 2 failed: there is nothing"):
        supervise(config, Console(file=shown), train_and_commit, evaluate_by_counting)

    folder = RunFolder.of(config.run)
    results = {step: json.loads((folder.evaluation(step) / "results.json").read_text()) for step in (1, LAST)}
    assert [results[step]["imagined"] for step in (1, LAST)] == [True, True]
    assert os.getpid() not in {result["pid"] for result in results.values()}
    summary = folder.read_summary()
    assert [entry["step"] for entry in summary["evaluations"]] == [1, LAST]
    assert summary["evaluations"][0]["success_rate"] == 1.0
    assert list((folder.path / "wandb").glob("offline-run-*"))
    assert "nothing to see" in (folder.path / "logs" / "eval_00000002.log").read_text()
    assert f"train {LAST}/{LAST}" in shown.getvalue()
    assert "evaluate step 3 1/1 1 of 1 episodes succeeded" in shown.getvalue()


def evaluate_only_the_last(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    if job.step < LAST:
        threading.Event().wait()
    return evaluate_by_counting(job, progress)


def test_evaluations_of_older_checkpoints_are_given_up_where_asked_for(config: RootConfig) -> None:
    config.eval.stale, config.eval.imagine_frames = "cancel", 0
    shown = io.StringIO()
    folder = supervise(config, Console(file=shown), train_and_commit, evaluate_only_the_last)
    assert [entry["step"] for entry in folder.read_summary()["evaluations"]] == [LAST]
    for step in (1, 2):
        assert f"evaluation of step {step} cancelled for a newer checkpoint" in shown.getvalue()
    assert json.loads((folder.evaluation(LAST) / "results.json").read_text())["imagined"] is False


def train_and_fail(config: TrainingConfig, start: RunStart) -> None:
    folder = RunFolder.of(config.run)
    train_and_commit(config, start)
    wait_until((folder.path / "logs" / "eval_00000001.log").exists)  # the supervisor has seen it
    raise InputError("the data ended")


def test_a_training_that_fails_says_which_evaluations_did_not_end(config: RootConfig) -> None:
    config.eval.every = 1
    shown = io.StringIO()
    with pytest.raises(InputError, match="the data ended"):
        supervise(config, Console(file=shown), train_and_fail, evaluate_only_the_last)
    assert "evaluations that did not end: steps 1, 2, 3; resuming the run repeats them" in shown.getvalue()


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


def train_one_step(config: TrainingConfig, start: RunStart) -> None:
    folder = RunFolder.of(config.run)
    step = len(list(folder.checkpoints.iterdir())) + 1
    with folder.metrics.open("a") as metrics:
        metrics.write(json.dumps({"step": step, "loss": 1.0, "tokens_per_second": 1.0, "mfu": 0.1}) + "\n")
    (folder.checkpoints / f"step_{step:08d}").mkdir()


def test_a_restart_is_the_same_wandb_run(config: RootConfig) -> None:
    config.eval.every = 0
    found = []
    for _ in range(2):
        folder = supervise(config, Console(file=io.StringIO()), train_one_step, evaluate_by_counting)
        found.append((folder.path / "wandb" / "run_id").read_text())
    assert found[0] == found[1]
    assert len(list(folder.path.glob(f"wandb/offline-run-*-{found[0]}/run-{found[0]}.wandb"))) == 2
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_00000001", "step_00000002"]


def test_a_second_command_in_a_run_folder_is_refused_and_changes_nothing(config: RootConfig) -> None:
    folder = RunFolder.of(config.run)
    with exclusive_access(folder):
        folder.open(config)
        before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
        config.checkpointing.keep_last = 3
        with pytest.raises(InputError, match="another command is training in this folder"):
            supervise(config, Console(file=io.StringIO()), train_and_commit, evaluate_by_counting)
        assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before
    assert not folder.wandb.exists()


def fails_on_a_full_disk_once(config: TrainingConfig, start: RunStart) -> None:
    from cluster.run import worker_process

    folder = RunFolder.of(config.run)
    if (folder.path / "was_full").exists():
        train_and_commit(config, start)
        return
    (folder.path / "was_full").touch()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(path: Path, text: str) -> None:
        raise full

    worker_process.write_text_whole = refuse
    raise full


def test_a_disk_that_is_full_for_a_moment_is_a_failure_with_a_restart(config: RootConfig) -> None:
    config.eval.every, config.cluster.restart_delay = 0, 0.1
    shown = io.StringIO()
    folder = supervise(config, Console(file=shown), fails_on_a_full_disk_once, evaluate_by_counting)
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    # Every start tells the order; a busy machine may have stragglers.
    events = [event for event in events if event["event"] not in ("order", "straggler")]
    assert [event["event"] for event in events] == ["failed", "restarting"]
    assert "rank_00000 failed: OSError: [Errno 28] No space left on device" in events[0]["error"]
    assert f"train {LAST}/{LAST}" in shown.getvalue()


def test_too_few_cpus_are_refused_before_anything_is_written(config: RootConfig) -> None:
    config.parallel.data, config.cluster.cpus = 4, 2
    with pytest.raises(InputError, match=r"cluster.cpus offers 2 CPUs to Ray, the run needs 5 \(4 training"):
        supervise(config, Console(file=io.StringIO()), train_and_commit, evaluate_by_counting)
    assert not RunFolder.of(config.run).path.exists()
