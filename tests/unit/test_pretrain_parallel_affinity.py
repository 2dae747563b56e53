"""A rank binds itself to the CPUs of its GPU."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.parallel.affinity import bind, bind_to_gpu_cpus, parse_cpus

UUID = "b1a2c3d4-0000-1111-2222-333344445555"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose driver reports one GPU; the folder of its devices."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = --id=GPU-{UUID} ] && echo 00000000:3B:00.0\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    (tmp_path / "devices" / "0000:3b:00.0").mkdir(parents=True)
    return tmp_path / "devices"


def test_threads_are_bound_to_the_cpus_of_the_gpu(machine: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    (machine / "0000:3b:00.0" / "local_cpulist").write_text(f"{cpu},4000-4003\n")
    program = (
        "import os, sys, threading; from pathlib import Path\n"
        "from pretrain.parallel.affinity import bind\n"
        f"print(bind({UUID!r}, Path(sys.argv[1])))\n"
        "thread = threading.Thread(target=lambda: print(os.sched_getaffinity(0)))\n"
        "thread.start(); thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(machine)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["bound to the 1 CPUs of GPU 0000:3b:00.0", f"{{{cpu}}}"], done.stderr


def test_unknown_cpus_leave_the_affinity_unchanged(machine: Path) -> None:
    before = os.sched_getaffinity(0)
    assert "nvidia-smi gives no PCI address of GPU other" in bind("other", machine)
    assert "No such file" in bind(UUID, machine)
    (machine / "0000:3b:00.0" / "local_cpulist").write_text("4000\n")
    assert "this process may use none of the CPUs of GPU 0000:3b:00.0" in bind(UUID, machine)
    (machine / "0000:3b:00.0" / "local_cpulist").write_text("\n")
    assert "invalid literal" in bind(UUID, machine)
    assert bind_to_gpu_cpus(torch.device("cpu")) is None
    assert os.sched_getaffinity(0) == before


def test_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bind(UUID).startswith("CPU affinity unchanged: nvidia-smi")


def test_lists_of_cpus() -> None:
    assert parse_cpus("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
