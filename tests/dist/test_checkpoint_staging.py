"""Saves of a training that goes on: what they hold is the state at `save`, whatever comes after it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from pretrain.checkpoint import staging
from pretrain.checkpoint.fragments import fragments
from pretrain.checkpoint.load import load
from pretrain.checkpoint.save import CheckpointError, CheckpointWriter
from pretrain.config import CheckpointingConfig, Offload, TrainingConfig
from pretrain.parallel.engine import Engine
from pretrain.parallel.mesh import Mesh
from tests.support import checkpoint_case as case
from tests.support.engine_case import LEARNING_RATE, global_batch, parts, settings
from tests.support.ranks import run_ranks
from tests.support.waiting import HANG_SECONDS

Held = dict[str, Tensor]
SAVES = 3


def _config(mesh: Mesh, stage: int, precision: str, micro_batches: int, offload: str) -> TrainingConfig:
    config = settings(mesh, stage, precision)
    if micro_batches > 1:
        config.trainer.micro_batch = case.SEQUENCES // mesh.data // micro_batches
    config.parallel.offload = cast(Offload, offload)
    return config


def _held(engine: Engine) -> Held:
    """A copy of all that this rank writes, by state, parameter and place."""
    return {
        f"{state}/{part.name}": values.clone()
        for part in fragments(engine)
        if part.is_writer
        for state, values in part.states.items()
    }


def _step(engine: Engine, micro_batches: int) -> None:
    groups = engine.groups
    batches = parts(global_batch(engine.step_count), groups.mesh, micro_batches, groups.data_rank)
    engine.step(batches, LEARNING_RATE)


class _LateCopies:
    """Copies that begin only when the training is about to change the state, as late as they can.

    Args:
        seconds: For which the training waits at least.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.changes = threading.Semaphore(0)
        self.overlapped = 0
        run, wait = staging.HostCopies.run, staging.HostCopies.wait_before_change

        def late(copies: staging.HostCopies) -> None:
            assert self.changes.acquire(timeout=HANG_SECONDS)
            time.sleep(seconds)
            run(copies)

        def waiting(copies: staging.HostCopies) -> None:
            self.overlapped += not copies._done.is_set()
            self.changes.release()
            wait(copies)

        staging.HostCopies.run = late  # type: ignore[method-assign]
        staging.HostCopies.wait_before_change = waiting  # type: ignore[method-assign]


def _save_at_every_step(config: TrainingConfig, root: Path, micro_batches: int) -> tuple[int, list[str]]:
    """Save after each step and change the state as soon as that is allowed.

    Returns:
        Saves whose copies began after the last backward pass of the next step, and tensors that differ, in
        a checkpoint that is loaded again, from the state at its save.
    """
    engine = case.build(config)
    late = _LateCopies(seconds=0.1)  # time for an update that does not wait
    writer = CheckpointWriter(root, engine)
    expected: list[Held] = []
    for step in range(1, SAVES + 1):
        _step(engine, micro_batches)
        expected.append(_held(engine))
        writer.save(step, {"tokens": step})
    _step(engine, micro_batches)
    writer.wait()
    overlapped, differing = late.overlapped, []
    for step, before in enumerate(expected, 1):
        load(root / f"step_{step:08d}", engine)
        assert engine.step_count == step
        after = _held(engine)
        assert before.keys() == after.keys()
        differing += [f"{step}: {name}" for name in before if not torch.equal(before[name], after[name])]
    return overlapped, differing


@pytest.mark.parametrize(
    ("mesh", "stage", "precision", "micro_batches", "offload"),
    [
        (Mesh(1, 2), 0, "fp32", 1, "none"),
        (Mesh(1, 2), 0, "bf16", 2, "none"),
        (Mesh(2, 1), 1, "fp32", 2, "none"),
        (Mesh(1, 2), 1, "bf16", 2, "none"),
        (Mesh(1, 2), 2, "fp32", 2, "none"),
        (Mesh(1, 2), 2, "bf16", 1, "optimizer"),
        (Mesh(1, 2), 3, "fp32", 2, "none"),
        (Mesh(1, 2), 3, "bf16", 2, "none"),
        (Mesh(1, 2), 3, "bf16", 1, "all"),
    ],
)
def test_a_save_at_every_step_holds_the_state_at_the_save_to_the_last_bit(
    mesh: Mesh, stage: int, precision: str, micro_batches: int, offload: str, tmp_path: Path
) -> None:
    config = _config(mesh, stage, precision, micro_batches, offload)
    for overlapped, differing in run_ranks(_save_at_every_step, mesh.size, config, tmp_path, micro_batches):
        assert overlapped == SAVES, "every save was still being copied when the next update was due"
        assert differing == []


def _load_while_copying(root: Path) -> list[str]:
    """Load an older checkpoint while the copies of a newer one have not begun; tensors that differ."""
    engine = case.build(settings(Mesh(1, 2), 3))
    writer = CheckpointWriter(root, engine)
    _step(engine, 1)
    writer.save(1, {})
    writer.wait()
    _step(engine, 1)
    before = _held(engine)
    late = _LateCopies(seconds=0.1)
    writer.save(2, {})
    load(root / "step_00000001", engine)
    writer.wait()
    assert late.overlapped == 1
    load(root / "step_00000002", engine)
    after = _held(engine)
    return [name for name in before if not torch.equal(before[name], after[name])]


def test_loading_waits_for_the_copies(tmp_path: Path) -> None:
    assert run_ranks(_load_while_copying, 2, tmp_path) == [[], []]


def _fail_to_copy(root: Path) -> tuple[str, list[dict[str, Any]]]:
    """Rank 1 cannot copy its part of the second of three checkpoints; the error and the events reported."""
    engine = case.build(settings(Mesh(1, 2), 2))
    events: list[dict[str, Any]] = []
    writer = CheckpointWriter(
        root,
        engine,
        CheckpointingConfig(attempts=2, retry_seconds=HANG_SECONDS),
        report=lambda event, **details: events.append({"event": event, **details}),
    )
    run = staging.HostCopies.run

    def fail(copies: staging.HostCopies) -> None:
        sound = copies._copies
        if engine.groups.rank == 1 and engine.step_count == 2:
            copies._copies = [staging.Copy(torch.zeros(2), torch.zeros(3))]
        try:
            run(copies)
        finally:
            copies._copies = sound

    staging.HostCopies.run = fail  # type: ignore[method-assign]
    message = ""
    for step in (1, 2, 3):
        _step(engine, 1)
        writer.save(step, {})
        try:
            writer.wait()
        except CheckpointError as error:
            message += str(error)
    return message, events


def test_a_rank_that_cannot_copy_fails_the_save_on_all_ranks_at_once(tmp_path: Path) -> None:
    (message, events), (other, silent) = run_ranks(_fail_to_copy, 2, tmp_path)
    assert message == other
    assert message.startswith("checkpoint of step 2 was not written: rank 1: not copied to host memory (")
    assert [event["event"] for event in events] == ["checkpoint_failed"]
    assert events[0]["retry_seconds"] is None, "the state is gone: no other attempt"
    assert silent == []
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_00000001", "step_00000003"], "no file of the second was begun"


def _states_and_flats(stage: int, offload: str) -> list[str]:
    """States that are not the optimiser's own memory, where the accelerator is another device."""
    from deepspeed.accelerator import get_accelerator

    config = settings(Mesh(1, 1), stage)
    config.parallel.offload = cast(Offload, offload)
    engine = case.build(config)
    get_accelerator().current_device_name = lambda: "meta"  # type: ignore[method-assign]
    addresses = set(staging.state_addresses(engine))
    return [
        f"{state}/{part.name}"
        for part in fragments(engine)
        for state, values in part.states.items()
        if values.untyped_storage().data_ptr() not in addresses
    ]


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "all")])
def test_states_in_host_memory_are_the_optimizers_own_beside_an_accelerator(stage: int, offload: str) -> None:
    assert run_ranks(_states_and_flats, 1, stage, offload) == [[]]


def _waits(root: Path, seconds: float) -> tuple[float, float]:
    """Seconds reported by an update that waited for copies, and by one after which there was no save."""
    engine = case.build(settings(Mesh(1, 1), 1))
    writer = CheckpointWriter(root, engine)
    _LateCopies(seconds)
    _step(engine, 1)
    writer.save(1, {})
    _step(engine, 1)
    waited = writer.take_wait()
    _step(engine, 1)
    return waited, writer.take_wait()


def test_the_wait_of_an_update_is_counted_once(tmp_path: Path) -> None:
    ((waited, afterwards),) = run_ranks(_waits, 1, tmp_path, 0.05)
    assert waited >= 0.05
    assert afterwards == 0.0
