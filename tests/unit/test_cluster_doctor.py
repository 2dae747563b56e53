"""`worldvla doctor`: findings, remedies, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.doctor import machine as examine_machine
from cluster.doctor import network as examine_cluster
from cluster.doctor.examine import doctor
from cluster.doctor.finding import FAIL, OK, WARN, Finding
from tests.support.training_case import write_dataset


def test_a_folder_that_can_be_written(tmp_path: Path) -> None:
    finding = examine_cluster.shared_folder(tmp_path / "runs")
    assert finding.state == OK
    assert "ms a small file" in finding.found
    assert list((tmp_path / "runs").iterdir()) == [], "nothing is left"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = examine_cluster.shared_folder(tmp_path / "file" / "runs")
    assert finding.state == FAIL
    assert finding.remedy == "set run.dir to another folder"


def test_a_data_set_that_is_there_and_one_that_is_not(tmp_path: Path) -> None:
    finding = examine_cluster.storage(write_dataset(tmp_path / "shards"))
    assert finding.state == OK, finding
    assert "MB/s" in finding.found
    finding = examine_cluster.storage(str(tmp_path / "none"))
    assert finding.state == FAIL
    assert "no index.json there" in finding.found


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert examine_cluster.ray_port(taken.getsockname()[1]).state == WARN


def test_versions_other_than_the_tested_ones(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("numpy==0.0.1\npytest==0.1\n")
    finding = examine_machine.packages(pins)
    assert finding.state == WARN
    assert "(tested 0.0.1)" in finding.found
    assert examine_machine.packages().state in (OK, WARN)
    pins.write_text("ray==1.0\n")
    monkey = examine_machine.metadata.PackageNotFoundError

    def nothing(name: str) -> str:
        raise monkey(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examine_machine.metadata, "version", nothing)
        assert examine_machine.packages(pins) == Finding("packages", FAIL, "missing: ray", "make setup")


def test_no_slurm_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert examine_cluster.slurm().state == WARN


def test_a_broken_renderer_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_machine, "_RENDER", "raise SystemExit('no screen')")
    finding = examine_machine.renderer()
    assert (finding.state, finding.found) == (FAIL, "osmesa: no screen")


def test_the_table_and_the_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["all_reduce=false", "render=false"]
    assert main(["doctor", f"folder={tmp_path}", *quick]) == 0
    assert "ms a small file" in capsys.readouterr().out
    assert main(["doctor", f"folder={tmp_path}", f"url={tmp_path}/none", *quick, "--json"]) == 1
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["ok"] is False
    assert {"subject", "state", "found", "remedy"} == set(told["findings"][0])
    assert shown.err.strip().splitlines()[-1].startswith("error: not fit for a run: data ")
    assert doctor.__doc__
