"""A training under Ray through killed processes, a failure that comes back, and a wish to end."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from cluster.config import RootConfig
from cluster.failures import CommandFailedError
from cluster.run.evaluation_group import EvaluationJob, Progress
from cluster.run.supervisor import supervise
from cluster.run.training import Train
from cluster.run.worker_entry_points import train_rank
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import PreemptedError
from pretrain.faults.watchdog import Watchdog
from pretrain.run_folder import RunFolder
from pretrain.run_layout import RunLayout
from pretrain.run_start import RunStart
from tests.support.training_case import BeforeStep, measured, settings, train, write_dataset
from tests.support.waiting import HANG_SECONDS, wait_until

pytestmark = pytest.mark.usefixtures("preloaded_workers")

KILLS = {3: 1, 6: 0, 7: 1}  # step after which a rank dies -> that rank
HANGS = {3: "1", 7: "0"}  # step after which a rank hangs -> that rank
STEP_TIMEOUT = 12.0  # seconds, counted from the hang on
LAST = 10
LAYOUT = (1, 2, 3)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def undisturbed(url: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the same training in plain processes without Ray."""
    config = settings(tmp_path_factory.mktemp("plain"), url, LAYOUT)
    config.trainer.steps = LAST
    return [line["loss"] for line in measured(train(config))]


def under_ray(folder: Path, url: str, **cluster: Any) -> RootConfig:
    plain = settings(folder, url, LAYOUT)
    config = RootConfig(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    config.trainer.steps = LAST
    config.eval.every = 0
    config.cluster.gpus_per_rank, config.cluster.restart_delay = 0, 0.0
    config.cluster.start_timeout = int(HANG_SECONDS)
    for name, value in cluster.items():
        setattr(config.cluster, name, value)
    return config


def no_evaluation(job: EvaluationJob, progress: Progress) -> Mapping[str, Any]:
    raise AssertionError("none was asked for")


def run(config: RootConfig, body: Train) -> str:
    """Supervise a training; return what the console showed."""
    shown = io.StringIO()
    supervise(config, Console(file=shown), body, no_evaluation)
    return shown.getvalue()


def events(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.events.read_text().splitlines()]


def names(folder: RunFolder) -> list[str]:
    """All events but those of every start, and of slow ranks, which a busy machine may have or not."""
    return [event["event"] for event in events(folder) if event["event"] not in ("order", "straggler")]


def killed_three_times(config: TrainingConfig, start: RunStart) -> None:
    folder = Path(config.run.dir)

    def act(step: int) -> None:
        if KILLS.get(step) == int(os.environ["RANK"]) and not (folder / f"killed_{step}").exists():
            (folder / f"killed_{step}").touch()
            checkpoints, newest = RunFolder.of(config.run).checkpoints, (step - 1) // 2 * 2
            wait_until((checkpoints / f"step_{newest:08d}" / "READY").exists)  # saved beside the next step
            if step == max(KILLS):
                damage(checkpoints / f"step_{newest:08d}")
            os.kill(os.getpid(), signal.SIGKILL)

    train_rank(config, start, [BeforeStep(act)])


def damage(checkpoint: Path) -> None:
    """Change one byte of a committed checkpoint."""
    wait_until((checkpoint / "READY").exists)
    path = sorted(checkpoint.glob("rank_00000-*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_three_killed_ranks_and_a_damaged_checkpoint_change_no_loss(
    url: str, undisturbed: list[float], tmp_path: Path
) -> None:
    config = under_ray(tmp_path, url)
    shown = run(config, killed_three_times)
    folder = RunFolder.of(config.run)
    assert [line["loss"] for line in measured(folder)] == undisturbed  # to the last digit, and without Ray
    assert [line["step"] for line in measured(folder)] == list(range(1, LAST + 1))
    assert names(folder).count("failed") == names(folder).count("restarting") == len(KILLS)
    resumed = [event["step"] for event in events(folder) if event["event"] == "resumed"]
    assert len(resumed) == len(KILLS)
    assert resumed[-1] == 4  # that of step 6 was damaged
    aside = next(event for event in events(folder) if event["event"] == "checkpoint_set_aside")
    assert aside["step"] == 6
    assert "rank_00000-" in aside["error"]
    assert "restarting at step 6: restart 3" in shown
    assert len(list(tmp_path.glob("killed_*"))) == len(KILLS)


class LateWatchdog:
    """The trainer's watchdog, which watches from `watch` on: until then steps may take any time."""

    def __init__(self, timeout: float, rank: int) -> None:
        self._watchdog, self._watches = Watchdog(timeout, rank), False

    def watch(self) -> None:
        self._watchdog.__enter__()
        self._watches = True

    def __enter__(self) -> LateWatchdog:
        LATE_WATCHDOGS.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._watches:
            self._watchdog.__exit__(*error)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None  # steps that finish are not counted


LATE_WATCHDOGS: list[LateWatchdog] = []  # of this process: one


def hangs_twice(config: TrainingConfig, start: RunStart) -> None:
    import pretrain.trainer as trainer

    trainer.Watchdog = LateWatchdog  # type: ignore[misc, assignment]
    folder, rank = Path(config.run.dir), os.environ["RANK"]

    def act(step: int) -> None:
        if step not in HANGS or (folder / f"hung_{step}").exists():
            return
        wait_until((RunFolder.of(config.run).checkpoints / f"step_{step - 1:08d}" / "READY").exists)
        (folder / f"at_{step}_{rank}").touch()
        wait_until(lambda: len(list(folder.glob(f"at_{step}_*"))) == 2)
        LATE_WATCHDOGS[0].watch()
        if HANGS[step] != rank:
            return
        (folder / f"hung_{step}").write_text(str(os.getpid()))
        if step == min(HANGS):
            never()
        os.kill(os.getpid(), signal.SIGSTOP)  # its watchdog cannot speak either

    train_rank(config, start, [BeforeStep(act)])


def never() -> None:
    threading.Event().wait()


def test_ranks_that_hang_are_told_and_change_no_loss(
    url: str, undisturbed: list[float], tmp_path: Path
) -> None:
    config = under_ray(tmp_path, url)
    config.guard.step_timeout = STEP_TIMEOUT
    run(config, hangs_twice)
    folder = RunFolder.of(config.run)
    assert [line["loss"] for line in measured(folder)] == undisturbed
    failed = [event for event in events(folder) if event["event"] == "failed"]
    cause = f"no step has finished for {STEP_TIMEOUT:g} s (guard.step_timeout)"
    where = f"; the stacks of all threads are in {folder.path}/logs/rank_*.log"
    assert [event["error"] for event in failed] == [
        f"{cause}{where}",
        f"{cause}; rank_00000 did not answer{where}",
    ]
    resumed = [event["step"] for event in events(folder) if event["event"] == "resumed"]
    assert resumed == [2, 6]
    assert re.search(r'", line \d+ in never\n', (folder.path / "logs" / "rank_00001.log").read_text())
    assert not any(psutil.pid_exists(int((tmp_path / f"hung_{step}").read_text())) for step in HANGS)


def always_fails(config: TrainingConfig, start: RunStart) -> None:
    def act(step: int) -> None:
        if step == 3:
            raise ValueError("batch 3 is odd")

    train_rank(config, start, [BeforeStep(act)])


def test_a_failure_that_comes_back_is_told_and_not_tried_for_ever(url: str, tmp_path: Path) -> None:
    config = under_ray(tmp_path, url)
    with pytest.raises(CommandFailedError, match=r"3 times in the same way after step 3: .*batch 3 is odd"):
        run(config, always_fails)
    folder = RunFolder.of(config.run)
    assert names(folder).count("restarting") == 2
    assert "batch 3 is odd" in (folder.path / "events.jsonl").read_text()


def fails_beside_evaluations(config: TrainingConfig, start: RunStart) -> None:
    """Fail once, while one evaluation runs and the next waits for its CPU."""
    folder = RunFolder.of(config.run)

    def act(step: int) -> None:
        if step == 5 and start.origin is None:
            wait_until((folder.logs / "eval_00000002.log").exists)
            raise ValueError("once")

    train_rank(config, start, [BeforeStep(act)])


def evaluate_after_the_training(job: EvaluationJob, progress: Progress) -> Mapping[str, Any]:
    wait_until((RunLayout.of_evaluation(job.out).path / "trained").exists)
    results = {"step": job.step, "suite": "none", "tasks": [0], "episodes": 1, "successes": 0, "errors": 1}
    job.out.mkdir(parents=True)
    (job.out / "results.json").write_text(json.dumps({**results, "success_rate": None}))
    return {**results, "success_rate": None}


def test_an_evaluation_that_waits_does_not_take_the_place_of_ranks_that_start_again(
    url: str, undisturbed: list[float], tmp_path: Path
) -> None:
    config = under_ray(tmp_path, url, restart_delay=2.0)
    config.eval.every = 2
    folder = RunFolder.of(config.run)

    def on_trained() -> None:
        (folder.path / "trained").touch()

    shown = Console(file=io.StringIO())
    supervise(config, shown, fails_beside_evaluations, evaluate_after_the_training, on_trained)
    assert [line["loss"] for line in measured(folder)] == undisturbed
    assert names(folder).count("restarting") == 1
    assert [each["step"] for each in folder.read_summary()["evaluations"]] == [2, 4, 6, 8, 10]


def asks_the_command_to_end(config: TrainingConfig, start: RunStart) -> None:
    folder = RunFolder.of(config.run)

    def act(step: int) -> None:
        if step == 4 and os.environ["RANK"] == "0" and "SUPERVISOR" in os.listdir(config.run.dir):
            os.kill(int(Path(config.run.dir, "SUPERVISOR").read_text()), signal.SIGUSR1)
            wait_until(folder.stop_request.exists)
            time.sleep(1.1)  # rank 0 looks for the file once a second

    train_rank(config, start, [BeforeStep(act)])


def test_a_signal_to_the_command_ends_it_with_a_checkpoint_to_go_on_from(
    url: str, undisturbed: list[float], tmp_path: Path
) -> None:
    config = under_ray(tmp_path, url)
    config.checkpointing.every = 100
    (tmp_path / "SUPERVISOR").write_text(str(os.getpid()))
    with pytest.raises(PreemptedError, match="stopped on request, with a checkpoint of step"):
        run(config, asks_the_command_to_end)
    folder = RunFolder.of(config.run)
    assert names(folder) == ["preempted"]
    assert not folder.stop_request.exists()
    stopped = folder.read_summary()["steps"]
    assert 4 < stopped < LAST
    assert [path.name for path in folder.checkpoints.iterdir()] == [f"step_{stopped:08d}"]
    (tmp_path / "SUPERVISOR").unlink()
    run(config, asks_the_command_to_end)
    assert [line["loss"] for line in measured(folder)] == undisturbed
