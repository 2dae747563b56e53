"""What the training group says of Ray's own errors; Ray itself is not started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.exceptions import RaySystemError

from cluster.failures import TrainingFailedError
from cluster.resources.reservation import Reservation
from cluster.resources.run_resources import RunResources
from cluster.run import train_group
from pretrain.config import TrainingConfig

RESOURCES = RunResources(ranks=1, cpus_per_rank=1, gpus_per_rank=0, evaluation_cpus=0)


@contextmanager
def _dies_at_its_start(*_: object) -> Iterator[list[object]]:
    raise RaySystemError("node lost\nits log: a page")
    yield []


def test_a_rank_that_dies_while_it_starts_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_group, "_rank_processes", _dies_at_its_start)
    reservation = Reservation.__new__(Reservation)  # without Ray
    reservation.resources, reservation.start_timeout = RESOURCES, 1.0
    with pytest.raises(TrainingFailedError, match=r"could not start .*node lost\)$"):
        train_group.run_train_group(TrainingConfig(), reservation, tmp_path / "logs", lambda config: None)
