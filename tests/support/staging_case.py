"""A training that is saved at every step while it goes on, with copies that begin as late as they can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from pretrain.checkpoint.fragments import fragments
from pretrain.checkpoint.load import load
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.checkpoint.staging import DeviceCopies, HostCopies
from pretrain.config import Offload, TrainingConfig
from pretrain.parallel.engine import Engine
from pretrain.parallel.mesh import Mesh
from tests.support import checkpoint_case as case
from tests.support.engine_case import LEARNING_RATE, global_batch, parts, settings
from tests.support.waiting import HANG_SECONDS

SAVES = 3
CYCLES = 1_000_000_000  # of a GPU, about half a second


def configuration(
    mesh: Mesh, stage: int, precision: str = "fp32", micro_batches: int = 1, offload: str = "none"
) -> TrainingConfig:
    config = settings(mesh, stage, precision)
    if micro_batches > 1:
        config.trainer.micro_batch = case.SEQUENCES // mesh.data // micro_batches
    config.parallel.offload = cast(Offload, offload)
    return config


def held(engine: Engine) -> dict[str, Tensor]:
    """A copy of all that this rank writes, by state and parameter."""
    return {
        f"{state}/{part.name}": values.clone()
        for part in fragments(engine)
        if part.is_writer
        for state, values in part.states.items()
    }


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names whose values are not the same to the last bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def step(engine: Engine, micro_batches: int = 1) -> None:
    groups = engine.groups
    batches = parts(global_batch(engine.step_count), groups.mesh, micro_batches, groups.data_rank)
    engine.step(batches, LEARNING_RATE)


class LateHostCopies:
    """Makes copies on the host begin only when the training is about to change the state.

    Args:
        seconds: For which the training then waits at least.

    Attributes:
        overlapped: Number of saves whose copies were not made when the next change was due.
    """

    def __init__(self, seconds: float) -> None:
        self.overlapped = 0
        changes = threading.Semaphore(0)
        run, wait = HostCopies.run, HostCopies.wait_before_change

        def late(copies: HostCopies) -> None:
            assert changes.acquire(timeout=HANG_SECONDS)
            time.sleep(seconds)
            run(copies)

        def waiting(copies: HostCopies) -> None:
            self.overlapped += not copies._done.is_set()
            changes.release()
            wait(copies)

        HostCopies.run = late  # type: ignore[method-assign]
        HostCopies.wait_before_change = waiting  # type: ignore[method-assign]


class LateDeviceCopies:
    """Keeps a GPU busy before it copies.

    Attributes:
        overlapped: Number of saves whose copies were not made when the next change was queued.
    """

    def __init__(self) -> None:
        self.overlapped = 0
        start, wait = DeviceCopies.start, DeviceCopies.wait_before_change

        def late(copies: DeviceCopies) -> None:
            with torch.cuda.stream(copies._stream):
                torch.cuda._sleep(CYCLES)
            start(copies)

        def waiting(copies: DeviceCopies) -> None:
            self.overlapped += not copies._done.query()
            wait(copies)

        DeviceCopies.start = late  # type: ignore[method-assign]
        DeviceCopies.wait_before_change = waiting  # type: ignore[method-assign]


def save_at_every_step(
    config: TrainingConfig,
    root: Path,
    micro_batches: int,
    make_late: Callable[[], LateHostCopies | LateDeviceCopies],
) -> tuple[int, list[str]]:
    """Save after each step and change the state as soon as that is allowed; every rank calls it.

    Returns:
        How many copies were late, and the tensors that differ, in a checkpoint that is loaded again, from the
        state at its save.
    """
    engine = case.build(config)
    late = make_late()
    writer = CheckpointWriter(root, engine)
    expected: list[dict[str, Tensor]] = []
    for number in range(1, SAVES + 1):
        step(engine, micro_batches)
        expected.append(held(engine))
        writer.save(number, {})
    step(engine, micro_batches)
    writer.wait()
    overlapped, found = late.overlapped, []
    for number, before in enumerate(expected, 1):
        load(root / f"step_{number:08d}", engine)
        assert engine.step_count == number
        found += [f"{number}: {name}" for name in differing(before, held(engine))]
    return overlapped, found
