"""Preparation on Ray for real: several workers, one of them killed, write the bytes that one writes."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from cluster.cli.handlers.prepare import run_prepare
from cluster.cli.invocation import Invocation
from cluster.config import PrepareCommandConfig
from cluster.failures import CommandFailedError
from cluster.run.prepare_group import run_on_ray
from cluster.run.worker_entry_points import make_preparer
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.storage.index import DatasetIndex
from tests.support.libero_layout import demonstration, write_file

pytestmark = pytest.mark.usefixtures("preloaded_workers")


class Deadly:
    """Codes of a constant; ends its process once where the folder does not tell that it has done so."""

    pixels, rows, columns, codebook_size, sha256 = 64, 8, 8, 256, "a" * 64

    def __init__(self, marker: Path, always: bool) -> None:
        self._marker, self._always = marker, always

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        if self._always or not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return frames[:, ::8, ::8, 0].astype(np.uint16)


class Closing(Preparer):
    """Tells by a file that it was closed."""

    def close(self) -> None:
        super().close()
        Path(self.config.source).with_name(f"closed-{os.getpid()}").touch()


def deadly_once(config: PrepareCommandConfig) -> Preparer:
    return Closing(config, Deadly(Path(config.source).with_name("died"), always=False))


def deadly(config: PrepareCommandConfig) -> Preparer:
    return Preparer(config, Deadly(Path(config.source).with_name("died"), always=True))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def config(tmp_path: Path) -> PrepareCommandConfig:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(seed=i) for i in range(8)])
    return PrepareCommandConfig(
        source=str(tmp_path / "demos"), out=str(tmp_path / "out"), shard_megabytes=0.022, workers=2
    )


def test_two_workers_write_the_bytes_of_one(config: PrepareCommandConfig, tmp_path: Path) -> None:
    shown = io.StringIO()
    run_prepare(config, Invocation(Console(file=shown)))
    assert len(list((tmp_path / "out").glob("*.tar"))) == 4
    assert "prepare 8/8 episodes" in shown.getvalue()
    run_prepare(replace(config, workers=1, out=str(tmp_path / "one")), Invocation(Console(file=shown)))
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "one")
    assert len(DatasetIndex.load(config.out).episodes) == 8


def test_a_worker_that_is_killed_is_replaced(config: PrepareCommandConfig, tmp_path: Path) -> None:
    prepare(deadly_once(config), run_parts=partial(run_on_ray, config, deadly_once))
    assert (tmp_path / "died").exists()
    assert len(list(tmp_path.glob("closed-*"))) == 2, "what each process has fetched is removed"
    alone = replace(config, out=str(tmp_path / "one"))
    prepare(deadly_once(alone))
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "one")


def test_what_goes_wrong_in_a_worker_is_told(config: PrepareCommandConfig, tmp_path: Path) -> None:
    with pytest.raises(
        CommandFailedError, match=r"died 4 times on the same part .* try fewer workers than 2"
    ):
        prepare(deadly(config), run_parts=partial(run_on_ray, config, deadly))
    broken = demonstration(seed=9)
    broken["actions"][2, 2] = np.inf
    write_file(tmp_path / "demos" / "push_demo.hdf5", [broken])
    with pytest.raises(InputError, match=r"demo_0: actions\[2, 2\] is inf"):
        prepare(make_preparer(config), run_parts=partial(run_on_ray, config, make_preparer))
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"workers": 0}, "workers=0: expected at least 1"),
        ({"gpus_per_worker": 2.0}, "expected 0 .CPUs., a share of a GPU, or 1"),
        ({"gpus_per_worker": 0.5, "workers": 64}, "need 32 GPUs, this machine has"),
    ],
)
def test_wrong_numbers_are_refused_first(
    config: PrepareCommandConfig, changes: dict[str, float], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        run_prepare(replace(config, **changes), Invocation(Console(file=io.StringIO())))
