"""The training group on Ray for real: four gloo processes, their failures, and what is left afterwards."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.config import ClusterConfig, RootConfig
from cluster.failures import CommandFailedError, TrainingFailedError
from cluster.resources.ray_session import Session, open_session
from cluster.resources.reservation import Reservation, reserved
from cluster.resources.run_resources import plan_resources
from cluster.run.train_group import run_train_group
from data.errors import InputError
from pretrain.config import ParallelConfig, TrainingConfig
from pretrain.faults.exit_codes import PreemptedError
from tests.support.waiting import HANG_SECONDS


def reduce_ranks(config: TrainingConfig) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    seen = [os.environ[name] for name in ("OMP_NUM_THREADS", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES")]
    Path(config.run.dir, f"rank_{dist.get_rank()}").write_text(" ".join([f"{total.item():g}", *seen]))


def fail_on_rank_1(config: TrainingConfig) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        raise ValueError("the second rank has had enough")
    dist.all_reduce(torch.ones(1))


def mistake(config: TrainingConfig) -> None:
    raise InputError("trainer.steps=0, expected 1 or more")


def die(config: TrainingConfig) -> None:
    if os.environ["RANK"] == "0":
        os.kill(os.getpid(), 9)
    threading.Event().wait()  # ended by Ray


@pytest.fixture(scope="module")
def session(preloaded_workers: None) -> Iterator[Session]:
    config = RootConfig(parallel=ParallelConfig(tensor=2, data=2))
    cluster = ClusterConfig(start_timeout=int(HANG_SECONDS))
    with open_session(cluster, plan_resources(config, gpus_available=4)) as opened:  # Ray believes it
        started = "\n".join(_processes(opened.folder))
        assert "raylet" in started
        for unused in ("monitor", "dashboard/dashboard.py"):
            assert unused not in started, "a process that nobody uses"
        yield opened
        folder = opened.folder
    assert not folder.exists()
    assert _processes(folder) == [], "processes of the session are still there"


def _processes(folder: Path) -> list[str]:
    """Command lines that name a folder."""
    found = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in found if str(folder) in line]


@pytest.fixture
def pair(session: Session) -> Iterator[Reservation]:
    """Two processes of the session: they start sooner than four."""
    with reserved(session, replace(session.resources, ranks=2)) as reservation:
        yield reservation


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    config = TrainingConfig(parallel=ParallelConfig(tensor=2, data=2))
    config.run.dir = str(tmp_path)
    return config


def test_four_ranks_form_a_process_group(session: Session, config: TrainingConfig, tmp_path: Path) -> None:
    with reserved(session) as reservation:
        run_train_group(config, reservation, tmp_path / "logs", reduce_ranks)
    found = [(tmp_path / f"rank_{rank}").read_text().split() for rank in range(4)]
    assert [each[:3] for each in found] == [["6", "1", str(rank)] for rank in range(4)]
    assert {each[3] for each in found} == {found[0][3]}, "NCCL needs to see the GPUs of its peers"
    assert sorted(found[0][3].split(",")) == ["0", "1", "2", "3"]


def test_ranks_that_find_no_room_are_one_line(session: Session) -> None:
    crowded = replace(session, start_timeout=0.1, resources=replace(session.resources, ranks=64))
    with pytest.raises(TrainingFailedError, match=r"64 training processes .*no room within .*=0\.1 s"):
        Reservation(crowded)


def test_ranks_on_a_node_that_is_gone_are_a_failure(session: Session) -> None:
    impatient = replace(session, start_timeout=0.1)
    with pytest.raises(TrainingFailedError, match="no room"):
        Reservation(impatient, nodes=["0" * 56] * 4)


def test_a_failed_rank_is_one_error_that_names_its_log(
    pair: Reservation, config: TrainingConfig, tmp_path: Path
) -> None:
    with pytest.raises(CommandFailedError, match="rank_00001 failed: ValueError: the second rank") as caught:
        run_train_group(config, pair, tmp_path / "logs", fail_on_rank_1)
    log = tmp_path / "logs" / "rank_00001.log"
    assert str(log) in str(caught.value)
    assert "fail_on_rank_1" in log.read_text()


def test_a_users_mistake_in_a_rank_stays_one(
    pair: Reservation, config: TrainingConfig, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^trainer\.steps=0, expected 1 or more$"):
        run_train_group(config, pair, tmp_path / "logs", mistake)


def test_a_killed_rank_ends_the_group_and_ray_prints_nothing(
    pair: Reservation, config: TrainingConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CommandFailedError, match="killed, or out of memory"):
        run_train_group(config, pair, tmp_path / "logs", die)
    threading.Event().wait(1.0)  # Ray's message arrives beside the exception
    assert capfd.readouterr() == ("", "")


def stop_on_a_full_disk(config: TrainingConfig) -> None:
    from cluster.run import worker_process

    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    worker_process.write_text_whole = refuse
    raise PreemptedError("stopped on request")


def test_ranks_that_cannot_record_their_stop_are_not_taken_for_finished(
    pair: Reservation, config: TrainingConfig, tmp_path: Path
) -> None:
    with pytest.raises(CommandFailedError):
        run_train_group(config, pair, tmp_path / "logs", stop_on_a_full_disk)
