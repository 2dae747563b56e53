"""Weights & Biases: one run over restarts, and a training that continues without it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pretrain.config import TelemetryConfig, WandbMode
from pretrain.run_folder import RunFolder, wandb_run_of
from pretrain.telemetry import wandb_sink
from pretrain.telemetry.wandb_sink import WandbSink, wandb_mode

STEP = {"step": 1, "loss": 2.5, "loss_image": None, "rank_time/slowest_host": "node7"}


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("W&B failed")]


def offline_runs(folder: Path) -> list[str]:
    """The files of the starts, of the one run."""
    identity = (folder / "wandb" / "run_id").read_text()
    return [str(path) for path in folder.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb")]


def test_a_restart_continues_the_same_run(tmp_path: Path) -> None:
    for step in (1, 2):
        sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb="offline"), {"optim": {"lr": 1.0}})
        sink.write({**STEP, "step": step})
        sink.write({"event": "validation", "step": step, "seconds": 1.0, "val_ind/loss": 0.25})
        sink.log(step, {"eval/success_rate": 0.5})
        sink.close()
        assert not sink.failed
    assert len(offline_runs(tmp_path)) == 2


def test_only_values_that_can_be_plotted_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_checkpoint_of_the_same_run_name_gives_the_id(tmp_path: Path) -> None:
    metadata = {"config": {"run": {"name": "mine"}}, "wandb_run": "abcd1234"}
    assert wandb_run_of(metadata, "mine") == "abcd1234"
    assert wandb_run_of(metadata, "another") is None
    assert wandb_run_of({**metadata, "wandb_run": "../../etc"}, "mine") is None
    assert wandb_run_of({"tokens": 0}, "mine") is None
    folder = RunFolder(tmp_path)
    assert folder.wandb_run("abcd1234") == "abcd1234"
    assert folder.wandb_run("ffff0000") == folder.wandb_run() == "abcd1234"


def test_a_server_that_does_not_answer_is_logged_once_and_the_run_continues_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setattr(wandb_sink, "INIT_SECONDS", 2.0)
        sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb="online"), {})
        sink.write(STEP)
        sink.close()
    assert not sink.failed
    assert len(offline_runs(tmp_path)) == 1
    (line,) = failures(caplog)
    assert line.endswith("it goes on offline; training goes on")


def test_wandb_that_dies_during_a_run_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    wandb.teardown()  # a process of its own, not that of the tests before
    sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb="offline"), {})
    sink.write(STEP)
    (service,) = [child for child in psutil.Process().children() if "wandb-core" in child.name()]
    service.send_signal(signal.SIGKILL)
    psutil.wait_procs([service])
    step, deadline = 1, time.monotonic() + 90
    while not sink.failed:  # records in transit when the connection breaks are lost without an error
        assert time.monotonic() < deadline, "the failure was not noticed"
        step += 1
        sink.write({**STEP, "step": step})
    sink.write({**STEP, "step": step + 1})
    sink.close()
    (line,) = failures(caplog)
    assert "left out from here on; training goes on" in line
    wandb.teardown()  # nothing is left that could fail as the process ends


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_full_disk_at_the_import_is_logged_and_the_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: WandbMode
) -> None:
    def full() -> None:  # the import makes a temporary folder
        raise OSError(28, "No space left on device", "/tmp")

    monkeypatch.setattr(wandb_sink, "_library", full)
    sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb=mode), {})
    sink.write(STEP)
    sink.log(1, {"eval/imagine": tmp_path / "imagine.png"})
    sink.close()
    assert sink.failed
    assert all("No space left on device" in line for line in failures(caplog))
    assert 1 <= len(failures(caplog)) <= 2


def test_a_picture_that_cannot_be_read_is_a_failure_of_wandb(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb="offline"), {})
    sink.log(1, {"eval/imagine": tmp_path / "removed.png"})
    assert sink.failed
    sink.close()
    (line,) = failures(caplog)
    assert "removed.png" in line


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("WANDB_MODE", "nonsense", "correct or unset WANDB_MODE"),
        ("WANDB_CONSOLE", "none", "correct or unset WANDB_CONSOLE"),
        ("WANDB_INIT_TIMEOUT", "abc", "correct or unset WANDB_INIT_TIMEOUT"),
        ("WANDB_BASE_URL", "wandb.local", "correct or unset WANDB_BASE_URL"),
        ("WANDB_SERVICE", "nonsense", "Failed to parse WANDB_SERVICE='nonsense'"),
        ("WANDB_SERVICE", "3-1234-unix-/nowhere/socket", "service on socket /nowhere/socket"),
    ],
)
def test_a_variable_that_wandb_refuses_is_named_and_wandb_left_out(
    name: str,
    value: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import wandb

    wandb.teardown()  # the service of the tests before
    monkeypatch.setenv(name, value)
    sink = WandbSink(tmp_path, "name", TelemetryConfig(wandb="auto"), {})
    sink.write(STEP)
    sink.close()
    wandb.teardown()
    assert sink.failed
    (line,) = failures(caplog)
    assert named in line
    assert line.endswith("it is left out; training goes on")


def test_the_service_of_another_process_is_not_used(tmp_path: Path) -> None:
    """A process that imports W&B itself: what is in the variable then is not its own."""
    program = (
        "import sys; from pathlib import Path; from pretrain.config import TelemetryConfig; "
        "from pretrain.telemetry.wandb_sink import WandbSink; "
        "sink = WandbSink(Path(sys.argv[1]), 'name', TelemetryConfig(wandb='offline'), {}); "
        "sink.write({'step': 1, 'loss': 1.0}); sink.close(); sys.exit(sink.failed)"
    )
    environment = {**os.environ, "WANDB_SERVICE": "3-1234-unix-/nowhere/socket"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False)
    assert done.returncode == 0
    assert len(offline_runs(tmp_path)) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"../../x", b"a" * 65])
def test_a_file_without_an_id_gives_a_new_run(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    folder.wandb_run()
    folder.wandb_run_id.write_bytes(content)
    identity = folder.wandb_run()
    assert len(identity) == 8
    assert folder.wandb_run() == identity
    assert "run_id: " in caplog.messages[0]


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
