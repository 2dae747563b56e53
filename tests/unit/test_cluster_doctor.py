"""`worldvla doctor`: check results, remedies, exit codes."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import socket
from functools import partial
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.doctor import machine_checks, network_checks
from cluster.doctor.check_result import FAIL, OK, WARN, CheckResult
from cluster.doctor.checks import run_check
from eval.simulator import rendering
from tests.support.training_case import write_dataset


@pytest.mark.parametrize(("milliseconds", "state"), [(40, OK), (60, WARN)])
def test_a_writable_folder_is_ok_and_a_slow_one_a_warning(
    milliseconds: int, state: str, tmp_path: Path
) -> None:
    seconds = itertools.count(0, milliseconds / 1000)
    result = network_checks.shared_folder(tmp_path / "runs", clock=lambda: round(next(seconds), 3))
    assert result.state == state
    assert result.found.startswith(f"{milliseconds}.0 ms a small file, ")
    assert list((tmp_path / "runs").iterdir()) == [], "the probe files are removed"


def test_a_folder_that_is_not_writable_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = network_checks.shared_folder(tmp_path / "file" / "runs")
    assert result.state == FAIL
    assert result.remedy == "set run.dir to another folder"


def test_a_data_set_is_read_and_a_missing_one_fails(tmp_path: Path) -> None:
    result = network_checks.storage(write_dataset(tmp_path / "shards"))
    assert result.state == OK, result
    assert "MB/s" in result.found
    result = network_checks.storage(str(tmp_path / "none"))
    assert result.state == FAIL
    assert "no index.json there" in result.found


def test_a_check_that_cannot_be_made_has_failed() -> None:
    def broken_renderer(backend: str) -> CheckResult:
        raise OSError(f"lib{backend}.so: cannot open shared object file")

    result = run_check(partial(broken_renderer, "EGL"))
    assert result is not None
    assert (result.subject, result.state) == ("broken renderer", FAIL)
    assert result.found == "OSError: libEGL.so: cannot open shared object file"


def test_a_port_in_use_is_a_warning() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert network_checks.ray_port(taken.getsockname()[1]).state == WARN


def test_other_versions_than_the_tested_ones_are_a_warning(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("numpy==0.0.1\npytest==0.1\n")
    result = machine_checks.packages(pins)
    assert result.state == WARN
    assert "(tested 0.0.1)" in result.found
    assert machine_checks.packages().state in (OK, WARN)
    pins.write_text("ray==1.0\n")

    def not_installed(name: str) -> str:
        raise machine_checks.metadata.PackageNotFoundError(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_checks.metadata, "version", not_installed)
        assert machine_checks.packages(pins) == CheckResult("packages", FAIL, "missing: ray", "make setup")


def test_no_slurm_client_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert network_checks.slurm().state == WARN


def test_a_broken_renderer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "_RENDER_SCRIPT", "raise SystemExit('no screen')")
    result = machine_checks.renderer()
    assert (result.state, result.found) == (FAIL, "osmesa: no screen")


def test_the_renderer_that_was_chosen_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rendering, "_defaults", {})
    script = "import os; print(int(os.environ.get('MUJOCO_GL') == 'osmesa'))"
    monkeypatch.setattr(machine_checks, "_RENDER_SCRIPT", script)
    assert machine_checks.renderer().state == OK


def test_the_table_and_the_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["all_reduce=false", "render=false"]
    assert main(["doctor", f"folder={tmp_path}", *quick]) == 0
    assert "ms a small file" in capsys.readouterr().out
    assert main(["doctor", f"folder={tmp_path}", f"url={tmp_path}/none", *quick, "--json"]) == 1
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert printed["ok"] is False
    assert {"subject", "state", "found", "remedy"} == set(printed["findings"][0])
    assert shown.err.strip().splitlines()[-1].startswith("error: not fit for a run: data ")


def test_locks_of_a_folder_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network_checks.file_locks(tmp_path / "runs").state == OK
    assert list((tmp_path / "runs").iterdir()) == [], "the probe file is removed"

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert network_checks.file_locks(tmp_path).found == "a second command in a run folder is not noticed"
    monkeypatch.setattr(fcntl, "flock", refuse)
    result = network_checks.file_locks(tmp_path)
    assert result.state == WARN
    assert result.found == "none (Function not implemented): commands on other machines are not noticed"
    assert "start one command a run folder" in result.remedy
    (tmp_path / "file").touch()
    assert network_checks.file_locks(tmp_path / "file" / "runs").state == FAIL
