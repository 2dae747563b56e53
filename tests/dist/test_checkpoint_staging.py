"""Saves of a training that goes on: what they hold is the state at `save`, whatever comes after it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint import staging
from pretrain.checkpoint.fragments import fragments
from pretrain.checkpoint.load import load
from pretrain.checkpoint.save import CheckpointError, CheckpointWriter
from pretrain.config import CheckpointingConfig
from pretrain.parallel.mesh import Mesh
from tests.support import checkpoint_case
from tests.support import staging_case as case
from tests.support.ranks import run_ranks
from tests.support.waiting import HANG_SECONDS

LATE = partial(case.LateHostCopies, 0.1)  # time for an update that does not wait


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
    config = case.configuration(mesh, stage, precision, micro_batches, offload)
    ranks = run_ranks(case.save_at_every_step, mesh.size, config, tmp_path, micro_batches, LATE)
    for overlapped, differing in ranks:
        assert overlapped == case.SAVES, "each was still to be copied when the next update was due"
        assert differing == []


def _load_while_copying(root: Path) -> list[str]:
    """Load an older checkpoint before a newer one's copies begin; tensors that are wrong in the newer one."""
    engine = checkpoint_case.build(case.configuration(Mesh(1, 2), 3))
    writer = CheckpointWriter(root, engine)
    case.step(engine)
    writer.save(1, {})
    writer.wait()
    case.step(engine)
    before, late = case.held(engine), LATE()
    writer.save(2, {})
    load(root / "step_00000001", engine)
    writer.wait()
    assert late.overlapped == 1
    load(root / "step_00000002", engine)
    return case.differing(before, case.held(engine))


def test_loading_waits_for_the_copies(tmp_path: Path) -> None:
    assert run_ranks(_load_while_copying, 2, tmp_path) == [[], []]


def _fail_to_copy(root: Path) -> tuple[str, list[dict[str, Any]]]:
    """Rank 1 cannot copy its part of the second of three checkpoints; the error and the events reported."""
    engine = checkpoint_case.build(case.configuration(Mesh(1, 2), 2))
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
        case.step(engine)
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


def _states_elsewhere(stage: int, offload: str) -> list[str]:
    """States that are not the optimiser's own memory, where the accelerator is another device."""
    from deepspeed.accelerator import get_accelerator

    engine = checkpoint_case.build(case.configuration(Mesh(1, 1), stage, offload=offload))
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
    assert run_ranks(_states_elsewhere, 1, stage, offload) == [[]]


def _save_around_new_memory(root: Path) -> list[str]:
    """Save, give the optimiser other memory, train and save again; tensors that are wrong in the second."""
    engine = checkpoint_case.build(case.configuration(Mesh(1, 1), 1))
    writer = CheckpointWriter(root, engine)
    case.step(engine)
    writer.save(1, {})
    case.step(engine)
    for states in engine.optimizer.state.values():
        states["exp_avg"] = states["exp_avg"].clone()
    case.step(engine)
    before = case.held(engine)
    writer.save(3, {})
    writer.wait()
    load(root / "step_00000003", engine)
    return case.differing(before, case.held(engine))


def test_states_that_have_moved_are_found(tmp_path: Path) -> None:
    assert run_ranks(_save_around_new_memory, 1, tmp_path) == [[]]


def _waits(root: Path, seconds: float) -> tuple[float, float]:
    """Seconds reported by an update that waited for copies, and by one after which there was no save."""
    engine = checkpoint_case.build(case.configuration(Mesh(1, 1), 1))
    writer = CheckpointWriter(root, engine)
    case.LateHostCopies(seconds)
    case.step(engine)
    writer.save(1, {})
    case.step(engine)
    waited = writer.take_wait()
    case.step(engine)
    return waited, writer.take_wait()


def test_the_wait_of_an_update_is_counted_once(tmp_path: Path) -> None:
    ((waited, afterwards),) = run_ranks(_waits, 1, tmp_path, 0.05)
    assert waited >= 0.05
    assert afterwards == 0.0
