"""Examinations of `worldvla doctor` that start processes: renderer, all-reduce, here and on Slurm."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from cluster.doctor import machine_checks, network_checks
from cluster.doctor.check_result import OK
from tests.support.virtual_slurm import VirtualSlurm

ROOT = Path(__file__).resolve().parents[2]


def test_the_renderer_draws() -> None:
    assert machine_checks.renderer().state == OK


def test_all_reduce_on_this_machine() -> None:
    finding = network_checks.all_reduce()
    assert finding.state == OK, finding
    assert "gloo, 2 ranks" in finding.found


def test_an_allocation_of_two_nodes(slurm: VirtualSlurm) -> None:
    doctor = [sys.executable, "-m", "cluster.cli.main", "doctor", "render=false", "--json"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PWD": os.getcwd()}
    shown = slurm.run("salloc", "--nodes=2", *doctor, more=environment)
    findings = {finding["subject"]: finding for finding in json.loads(shown)["findings"]}
    assert findings["all-reduce, 2 nodes"]["state"] == OK, findings
    assert "gloo, 2 ranks" in findings["all-reduce, 2 nodes"]["found"]
    assert findings["Slurm"]["state"] == OK
