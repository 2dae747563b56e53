"""What goes wrong while saving, or lies damaged on the disk, is named and leaves older checkpoints whole."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from data.errors import InputError
from data.storage import bulk
from pretrain.checkpoint import save
from pretrain.checkpoint.load import load
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.save import CheckpointError, CheckpointWriter
from pretrain.checkpoint.weights import load_weights
from pretrain.config import CheckpointingConfig
from tests.support import checkpoint_case as case
from tests.support.ranks import RankFailedError, run_ranks

LAYOUT = (1, 2, 3)
ONCE = CheckpointingConfig(attempts=1)


def _save_and_die(root: Path) -> None:
    """Rank 0 is killed after every file was written and before the commit of the second checkpoint."""
    engine = case.build(case.config(LAYOUT))
    writer = CheckpointWriter(root, engine)
    case.steps(engine, 1)
    writer.save(1, {})
    writer.wait()

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    save.commit = die
    case.steps(engine, 2)
    writer.save(2, {})
    writer.wait()


def _go_on(root: Path) -> tuple[list[str], list[dict[str, Any]]]:
    engine = case.build(case.config(LAYOUT))
    newest = case.latest(root)
    assert newest is not None
    load(newest, engine)
    told: list[dict[str, Any]] = []
    CheckpointWriter(root, engine, report=lambda event, **details: told.append({"event": event, **details}))
    return sorted(path.name for path in root.iterdir()), told


def test_killed_while_saving_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RankFailedError, match=r"rank 0 died|rank 1 failed"):
        run_ranks(_save_and_die, 2, tmp_path)
    assert len(list(tmp_path.glob("step_00000002/rank_*.safetensors"))) == 4
    (tmp_path / ".tmp-step_00000009-aa").mkdir()  # as older versions left them
    found = run_ranks(_go_on, 2, tmp_path)
    names, told = found[0]
    assert names == ["step_00000001"], "loaded, and the torn save is cleaned away"
    removed = ["step_00000002", ".tmp-step_00000009-aa"]
    assert told == [{"event": "checkpoint_cleaned", "step": 1, "removed": removed}]
    assert found[1][1] == [], "told once"


def _full_disk(root: Path) -> tuple[str, str]:
    """Rank 1 cannot write its file of the second checkpoint; the third is written again."""
    engine = case.build(case.config(LAYOUT))
    writer = CheckpointWriter(root, engine, ONCE)
    writer.save(1, {})
    writer.wait()
    if engine.groups.rank == 1:  # the kernel cuts its files short
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    writer.save(2, {})
    try:
        writer.wait()
        message = "no error"
    except CheckpointError as error:
        message = str(error)
    newest = case.latest(root)
    assert newest is not None
    dist.barrier()  # both have removed theirs
    assert not (root / "step_00000002").exists(), "what the ranks had written is gone"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.save(3, {})
    writer.wait()
    return message, newest.name


def test_a_file_cut_short_on_one_rank_is_told_on_all_and_the_next_save_works(tmp_path: Path) -> None:
    for message, newest in run_ranks(_full_disk, 2, tmp_path):
        assert message == "checkpoint of step 2 was not written: rank 1: [Errno 27] File too large"
        assert newest == "step_00000001"
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000001", "step_00000003"}


def _fails_for_a_while(root: Path, times: int, attempts: int) -> tuple[str, list[dict[str, Any]]]:
    """No space left for rank 1, so many times."""
    engine = case.build(case.config(LAYOUT))
    told: list[dict[str, Any]] = []
    settings = CheckpointingConfig(attempts=attempts, retry_seconds=0.01)
    writer = CheckpointWriter(
        root, engine, settings, report=lambda event, **details: told.append({"event": event, **details})
    )
    really_sync, left = os.fsync, [times]

    def fail(descriptor: int) -> None:
        if engine.groups.rank == 1 and left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really_sync(descriptor)

    bulk.os.fsync = fail
    writer.save(1, {})
    try:
        writer.wait()
    except CheckpointError as error:
        return str(error), told
    return "", told


def test_a_full_disk_is_tried_again_with_doubling_waits(tmp_path: Path) -> None:
    (message, told), (other, silent) = run_ranks(_fails_for_a_while, 2, tmp_path, 2, 3)
    assert (message, other, silent) == ("", "", [])
    problem = "rank 1: [Errno 28] No space left on device"
    event = {"event": "checkpoint_failed", "step": 1, "error": problem}
    assert told == [
        {**event, "attempt": 1, "retry_seconds": 0.01},
        {**event, "attempt": 2, "retry_seconds": 0.02},
    ]
    weights = load_weights(tmp_path / "step_00000001")
    assert weights
    names = [path.name.split("-")[0] for path in (tmp_path / "step_00000001").iterdir()]
    assert len(names) == len(set(names)) == 7, "nothing of the attempts that failed"


def test_an_error_comes_on_all_ranks_when_every_attempt_failed(tmp_path: Path) -> None:
    (message, told), (other, _) = run_ranks(_fails_for_a_while, 2, tmp_path, 9, 2)
    expected = (
        "checkpoint of step 1 was not written in 2 attempts: rank 1: [Errno 28] No space left on device"
    )
    assert message == other == expected
    assert [event["retry_seconds"] for event in told] == [0.01, None]


def _commit_fails(root: Path, layout: case.Layout, error: Exception) -> str:
    engine = case.build(case.config(layout))
    writer = CheckpointWriter(root, engine, ONCE)

    def fail(*_: Any) -> None:
        raise error

    save.commit = fail
    writer.save(1, {})
    try:
        writer.wait()
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_a_commit_that_fails_on_the_first_rank_is_told_on_all(tmp_path: Path) -> None:
    for message in run_ranks(_commit_fails, 2, tmp_path, LAYOUT, OSError(5, "Input/output error")):
        assert "rank 0: [Errno 5] Input/output error" in message
    assert case.latest(tmp_path) is None


def test_a_save_that_dies_of_a_defect_is_told_as_well(tmp_path: Path) -> None:
    (message,) = run_ranks(_commit_fails, 1, tmp_path, (1, 1, 1), TypeError("a defect"))
    assert message == "checkpoint of step 1 was not written: its thread died, see the traceback above"


def _marker_fails(root: Path, written: bool, readable: bool) -> tuple[str, list[str]]:
    """A save over an older checkpoint of its step whose READY is refused, or whose answer is lost."""
    engine = case.build(case.config((1, 1, 1)))
    writer = CheckpointWriter(root, engine, ONCE)
    writer.save(1, {"first": True})
    writer.wait()
    put, exists = bulk.BulkFolder.put, CheckpointLocation._holds

    def fail(self: Any, name: str, content: bytes) -> None:
        if written or not name.endswith("READY"):
            put(self, name, content)
        if name.endswith("READY"):
            raise OSError("the answer was lost")

    def unreadable(self: Any, name: str, content: bytes, error: OSError) -> bool:
        if readable:
            return exists(self, name, content, error)
        raise save.UnsureError(str(error)) from error

    bulk.BulkFolder.put, CheckpointLocation._holds = fail, unreadable
    writer.save(1, {"second": True})
    try:
        writer.wait()
        message = ""
    except CheckpointError as error:
        message = str(error)
    assert load_weights(root / "step_00000001"), "whole, in any case"
    return message, sorted(case.metadata(root / "step_00000001"))


@pytest.mark.parametrize(
    ("written", "readable", "message", "there"),
    [
        (True, True, "", "second"),
        (False, True, "the answer was lost", "first"),
        (True, False, "the answer was lost", "second"),
        (False, False, "the answer was lost", "first"),
    ],
)
def test_an_older_checkpoint_of_the_step_stays_whole(
    tmp_path: Path, written: bool, readable: bool, message: str, there: str
) -> None:
    ((found, metadata),) = run_ranks(_marker_fails, 1, tmp_path, written, readable)
    assert metadata == [there]
    assert (message in found) if message else not found


def _load_damaged(path: Path, layout: case.Layout) -> str:
    engine = case.build(case.config(layout))
    try:
        load(path, engine)
    except InputError as error:
        return str(error)
    return "no error"


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("kind", ["", ".optimizer"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [(_flip, "differs from its checksum"), (_cut, "has 100 bytes, expected"), (Path.unlink, "is missing")],
)
def test_a_damaged_file_is_named_by_every_rank(
    tmp_path: Path, kind: str, harm: Callable[[Path], None], told: str
) -> None:
    run_ranks(case.train_and_save, 2, case.config(LAYOUT), tmp_path, [1], 1)
    checkpoint = tmp_path / "step_00000001"
    file = case.file(checkpoint, 1, kind)
    harm(file)
    for message in [
        m for layout in (LAYOUT, (2, 1, 3)) for m in run_ranks(_load_damaged, 2, checkpoint, layout)
    ]:
        assert message.startswith(f"{checkpoint}: damaged: {file.name} {told}")
        assert message.endswith("; take another checkpoint")
    if kind:
        assert load_weights(checkpoint), "the weights alone do not need it"
    else:
        with pytest.raises(InputError, match=f"{file.name} {told}"):
            load_weights(checkpoint)


def _keep_two(root: Path) -> None:
    engine = case.build(case.config(LAYOUT))
    writer = CheckpointWriter(root, engine, CheckpointingConfig(keep_last=2))
    for step in (1, 2, 3, 3):
        writer.save(step, {})
    writer.wait()
    assert writer.committed == ([2, 3] if engine.groups.rank == 0 else [])


def test_older_checkpoints_go_and_a_step_may_be_saved_again(tmp_path: Path) -> None:
    run_ranks(_keep_two, 2, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    assert len(list((tmp_path / "step_00000003").iterdir())) == 7, "of the second save alone"
