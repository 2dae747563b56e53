"""Preparation on a GPU: two workers that share it write the same bytes as one."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("ray", reason="prepares on workers of Ray, which is not installed")
pytest.importorskip("h5py", reason="writes demonstrations as HDF5, needs h5py")

from cluster.cli.handlers.prepare import run_prepare
from cluster.cli.invocation import Invocation
from cluster.config import PrepareCommandConfig
from tests.support.libero_layout import demonstration, write_file

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_two_workers_on_one_gpu_write_the_bytes_of_one(tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(seed=i) for i in range(8)])
    alone = PrepareCommandConfig(
        source=str(tmp_path / "demos"), out=str(tmp_path / "one"), shard_megabytes=0.022, gpus_per_worker=1.0
    )
    shared = replace(alone, out=str(tmp_path / "two"), workers=2, gpus_per_worker=0.5)
    for config in (alone, shared):
        run_prepare(config, Invocation(Console(file=io.StringIO())))
    names = sorted(path.name for path in (tmp_path / "one").rglob("*.*"))
    assert names == sorted(path.name for path in (tmp_path / "two").rglob("*.*"))
    assert (tmp_path / "one/index.json").read_bytes() == (tmp_path / "two/index.json").read_bytes()
