"""Weights & Biases: one run over restarts, and training that does without it."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import psutil
import pytest

from pretrain.config import TelemetryConfig
from pretrain.run_folder import RunFolder, wandb_run_of
from pretrain.telemetry import wandb_sink
from pretrain.telemetry.wandb_sink import WandbSink, wandb_mode

STEP = {"step": 1, "loss": 2.5, "loss_image": None, "rank_time/slowest_host": "node7"}


def offline_runs(folder: Path) -> list[str]:
    """The files of the starts, of the one run."""
    identity = (folder / "wandb" / "run_id").read_text()
    return [str(path) for path in folder.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb")]


def test_a_restart_goes_on_with_the_same_run(tmp_path: Path) -> None:
    for step in (1, 2):
        sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb="offline"), {"optim": {"lr": 1.0}})
        sink.write({**STEP, "step": step})
        sink.write({"event": "validation", "step": step, "seconds": 1.0, "val_ind/loss": 0.25})
        sink.log(step, {"eval/success_rate": 0.5})
        sink.close()
        assert not sink.failed
    assert len(offline_runs(tmp_path)) == 2


def test_only_what_can_be_drawn_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb="offline"), {})
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(sink._run, "log", logged.append)
    sink.write(STEP)
    sink.write({"event": "resumed", "step": 1, "checkpoint": "c"})
    sink.write({"event": "validation", "step": 1, "seconds": 1.0, "val_ind/loss": 0.25, "val_ood/loss": None})
    sink.close()
    assert logged == [
        {"step": 1, "train/loss": 2.5},
        {"step": 1, "events/resumed": 1},
        {"step": 1, "val_ind/loss": 0.25},
    ]


def test_the_run_is_known_from_a_checkpoint_of_the_same_name(tmp_path: Path) -> None:
    metadata = {"config": {"run": {"name": "mine"}}, "wandb_run": "abcd1234"}
    assert wandb_run_of(metadata, "mine") == "abcd1234"
    assert wandb_run_of(metadata, "another") is None
    assert wandb_run_of({**metadata, "wandb_run": "../../etc"}, "mine") is None
    assert wandb_run_of({"tokens": 0}, "mine") is None
    folder = RunFolder(tmp_path)
    assert folder.wandb_run("abcd1234") == "abcd1234"
    assert folder.wandb_run("ffff0000") == folder.wandb_run() == "abcd1234"


def test_a_server_that_does_not_answer_is_told_once_and_the_run_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setattr(wandb_sink, "INIT_SECONDS", 2.0)
        sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb="online"), {})
        sink.write(STEP)
        sink.close()
    assert not sink.failed
    assert len(offline_runs(tmp_path)) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("W&B failed")]
    assert line.endswith("it goes on offline; training goes on")


def test_wandb_that_dies_under_way_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import wandb

    wandb.teardown()  # a process of its own, not that of the tests before
    sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb="offline"), {})
    sink.write(STEP)
    (service,) = [child for child in psutil.Process().children() if "wandb-core" in child.name()]
    service.send_signal(signal.SIGKILL)
    psutil.wait_procs([service])
    for step in range(2, 2000):  # what is on its way when the connection breaks is lost without a word
        sink.write({**STEP, "step": step})
        if sink.failed:
            break
    assert sink.failed
    sink.write({**STEP, "step": 2000})
    sink.close()
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("W&B failed")]
    assert len(told) == 1
    assert "left out from here on; training goes on" in told[0]
    wandb.teardown()  # nothing is left that could fail as the process ends


def test_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"
    assert wandb_mode("offline") == "offline"
