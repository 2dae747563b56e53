"""Failed saves and damaged files are reported on every rank and leave older checkpoints whole."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from data.errors import InputError, StorageError
from data.storage import bulk_store as bulk
from data.storage.store import FileStore
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
    """Kill rank 0 after every file was written and before the commit of the second checkpoint."""
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


def _resume(root: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Load the newest checkpoint and make a writer; folders that remain, and the events reported."""
    engine = case.build(case.config(LAYOUT))
    newest = case.latest(root)
    assert newest is not None
    load(newest, engine)
    events: list[dict[str, Any]] = []
    CheckpointWriter(root, engine, report=lambda event, **details: events.append({"event": event, **details}))
    return sorted(path.name for path in root.iterdir()), events


def test_rank_killed_while_saving_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RankFailedError, match=r"rank 0 died|rank 1 failed"):
        run_ranks(_save_and_die, 2, tmp_path)
    assert len(list(tmp_path.glob("step_00000002/rank_*.safetensors"))) == 4
    (names, events), (_, events_of_rank_1) = run_ranks(_resume, 2, tmp_path)
    assert names == ["step_00000001"], "loaded, and the interrupted save is removed"
    assert events == [{"event": "checkpoint_cleaned", "step": 1, "removed": ["step_00000002"]}]
    assert events_of_rank_1 == [], "reported once"


def _full_disk(root: Path) -> tuple[str, str]:
    """Rank 1 cannot write its file of the second checkpoint; then the third is saved."""
    engine = case.build(case.config(LAYOUT))
    writer = CheckpointWriter(root, engine, ONCE)
    writer.save(1, {})
    writer.wait()
    if engine.groups.rank == 1:  # the kernel truncates its files
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    writer.save(2, {})
    try:
        writer.wait()
        message = "no error"
    except CheckpointError as error:
        message = str(error)
    newest = case.latest(root)
    assert newest is not None
    dist.barrier()  # both ranks have removed their files
    assert not (root / "step_00000002").exists(), "files of the failed attempt are removed"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.save(3, {})
    writer.wait()
    return message, newest.name


def test_write_error_of_one_rank_is_raised_on_all_and_the_next_save_succeeds(tmp_path: Path) -> None:
    for message, newest in run_ranks(_full_disk, 2, tmp_path):
        assert message == "checkpoint of step 2 was not written: rank 1: [Errno 27] File too large"
        assert newest == "step_00000001"
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000001", "step_00000003"}


def _save_on_full_disk(root: Path, failures: int, attempts: int) -> tuple[str, list[dict[str, Any]]]:
    """Save with no space left for rank 1 the first `failures` times; the error and the events reported."""
    engine = case.build(case.config(LAYOUT))
    events: list[dict[str, Any]] = []
    settings = CheckpointingConfig(attempts=attempts, retry_seconds=0.01)
    writer = CheckpointWriter(
        root, engine, settings, report=lambda event, **details: events.append({"event": event, **details})
    )
    fsync, remaining = os.fsync, [failures]

    def fail(descriptor: int) -> None:
        if engine.groups.rank == 1 and remaining[0]:
            remaining[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    bulk.os.fsync = fail
    writer.save(1, {})
    try:
        writer.wait()
    except CheckpointError as error:
        return str(error), events
    return "", events


def test_save_on_a_full_disk_is_retried_with_doubling_waits(tmp_path: Path) -> None:
    (message, events), (other, silent) = run_ranks(_save_on_full_disk, 2, tmp_path, 2, 3)
    assert (message, other, silent) == ("", "", [])
    error = "rank 1: [Errno 28] No space left on device"
    event = {"event": "checkpoint_failed", "step": 1, "error": error}
    assert events == [
        {**event, "attempt": 1, "retry_seconds": 0.01},
        {**event, "attempt": 2, "retry_seconds": 0.02},
    ]
    assert load_weights(tmp_path / "step_00000001")
    names = [path.name.split("-")[0] for path in (tmp_path / "step_00000001").iterdir()]
    assert len(names) == len(set(names)) == 7, "files of the failed attempts are removed"


def test_error_is_raised_on_all_ranks_after_the_last_attempt(tmp_path: Path) -> None:
    (message, events), (other, _) = run_ranks(_save_on_full_disk, 2, tmp_path, 9, 2)
    expected = (
        "checkpoint of step 1 was not written in 2 attempts: rank 1: [Errno 28] No space left on device"
    )
    assert message == other == expected
    assert [event["retry_seconds"] for event in events] == [0.01, None]


def _save_and_fail_to_commit(root: Path, layout: case.Layout, error: Exception) -> str:
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


def test_commit_that_fails_on_rank_0_raises_on_all(tmp_path: Path) -> None:
    for message in run_ranks(_save_and_fail_to_commit, 2, tmp_path, LAYOUT, OSError(5, "Input/output error")):
        assert "rank 0: [Errno 5] Input/output error" in message
    assert case.latest(tmp_path) is None


def test_defect_in_the_saving_thread_is_raised(tmp_path: Path) -> None:
    (message,) = run_ranks(_save_and_fail_to_commit, 1, tmp_path, (1, 1, 1), TypeError("a defect"))
    assert message == "checkpoint of step 1 was not written: its thread died, see the traceback above"


def _save_and_fail_to_mark(root: Path, written: bool, readable: bool) -> tuple[str, list[str]]:
    """Save a step again; writing READY fails, or only its answer is lost, and READY may be unreadable."""
    engine = case.build(case.config((1, 1, 1)))
    writer = CheckpointWriter(root, engine, ONCE)
    writer.save(1, {"first": True})
    writer.wait()
    put, was_written = bulk.BulkFolder.put, CheckpointLocation._was_written

    def fail(self: Any, name: str, content: bytes) -> None:
        if written or not name.endswith("READY"):
            put(self, name, content)
        if name.endswith("READY"):
            raise OSError("the answer was lost")

    def unreadable(self: Any, name: str, content: bytes, error: OSError) -> bool:
        if readable:
            return was_written(self, name, content, error)
        raise save.UncertainCommitError(str(error)) from error

    bulk.BulkFolder.put, CheckpointLocation._was_written = fail, unreadable
    writer.save(1, {"second": True})
    try:
        writer.wait()
        message = ""
    except CheckpointError as error:
        message = str(error)
    assert load_weights(root / "step_00000001"), "complete in any case"
    return message, sorted(case.metadata(root / "step_00000001"))


@pytest.mark.parametrize(
    ("written", "readable", "message", "committed"),
    [
        (True, True, "", "second"),
        (False, True, "the answer was lost", "first"),
        (True, False, "the answer was lost", "second"),
        (False, False, "the answer was lost", "first"),
    ],
)
def test_step_has_a_complete_checkpoint_when_its_second_commit_fails(
    tmp_path: Path, written: bool, readable: bool, message: str, committed: str
) -> None:
    ((error, metadata),) = run_ranks(_save_and_fail_to_mark, 1, tmp_path, written, readable)
    assert metadata == [committed]
    assert message in error if message else error == ""


def _errors_of_loading(paths: list[Path], layout: case.Layout) -> list[tuple[str, str]]:
    """Load checkpoints into one engine; class and message of the error of each."""
    engine = case.build(case.config(layout))
    errors: list[tuple[str, str]] = []
    for path in paths:
        try:
            load(path, engine)
        except InputError as error:
            errors.append((type(error).__name__, str(error)))
        else:
            errors.append(("no error", ""))
    return errors


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def _cut_a_record(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


KINDS = ("", ".optimizer")
DAMAGES = {
    _flip: "differs from its checksum",
    _truncate: "has 100 bytes, expected",
    Path.unlink: "is missing",
}
RECORDS = ("READY", "manifest-*.json", "pieces-*.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks."""
    root = tmp_path_factory.mktemp("saved")
    run_ranks(case.train_and_save, 2, case.config(LAYOUT), root, [1], 1)
    return root / "step_00000001"


@dataclass(frozen=True, slots=True)
class Damaged:
    """A damaged checkpoint.

    Attributes:
        path: Its folder.
        file: Name of the damaged file.
        errors: Class and message of the error that each rank of two layouts gets, first of `LAYOUT`.
    """

    path: Path
    file: str
    errors: list[tuple[str, str]]


@pytest.fixture(scope="module")
def damaged(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Damaged]:
    """Copies of a checkpoint by how one file is damaged; one start of the ranks loads them all."""
    files: dict[Any, Path] = {}
    for kind, damage in itertools.product(KINDS, DAMAGES):
        copy = shutil.copytree(saved, tmp_path_factory.mktemp("damaged") / saved.name)
        files[kind, damage] = case.file(copy, 1, kind)
        damage(files[kind, damage])
    for name in RECORDS:
        copy = shutil.copytree(saved, tmp_path_factory.mktemp("damaged") / saved.name)
        (files[name],) = copy.glob(name)
        _cut_a_record(files[name])
    paths = [file.parent for file in files.values()]
    of_ranks = [
        errors for layout in (LAYOUT, (2, 1, 3)) for errors in run_ranks(_errors_of_loading, 2, paths, layout)
    ]
    return {
        key: Damaged(file.parent, file.name, [errors[at] for errors in of_ranks])
        for at, (key, file) in enumerate(files.items())
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("damage", "expected"), DAMAGES.items())
def test_damaged_file_is_named_by_every_rank(
    damaged: dict[Any, Damaged], kind: str, damage: Callable[[Path], None], expected: str
) -> None:
    found = damaged[kind, damage]
    assert len(found.errors) == 4
    for _, message in found.errors:
        assert message.startswith(f"{found.path}: damaged: {found.file} {expected}")
        assert message.endswith("; take another checkpoint")
    if kind:
        assert load_weights(found.path), "bare weights do not need it"
    else:
        with pytest.raises(InputError, match=f"{found.file} {expected}"):
            load_weights(found.path)


def _save_four_times(root: Path) -> None:
    engine = case.build(case.config(LAYOUT))
    writer = CheckpointWriter(root, engine, CheckpointingConfig(keep_last=2))
    for step in (1, 2, 3, 3):
        writer.save(step, {})
    writer.wait()
    assert writer.committed == ([2, 3] if engine.groups.rank == 0 else [])


def test_older_checkpoints_are_removed_and_a_step_can_be_saved_again(tmp_path: Path) -> None:
    run_ranks(_save_four_times, 2, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    assert len(list((tmp_path / "step_00000003").iterdir())) == 7, "only files of the second save"


def _load_unanswered(path: Path, layout: case.Layout) -> tuple[str, str]:
    """Load while the storage does not answer rank 1."""
    engine = case.build(case.config(layout))
    if engine.groups.rank == 1:

        def unanswered(*_: Any) -> bytes:
            raise StorageError("s3://bucket/run: cannot be read (connection refused)")

        FileStore.read_range = unanswered  # type: ignore[method-assign]
    try:
        load(path, engine)
    except InputError as error:
        return type(error).__name__, str(error)
    return "no error", ""


def test_a_storage_that_does_not_answer_one_rank_is_an_error_of_all_and_no_damage(saved: Path) -> None:
    expected = ("StorageError", "s3://bucket/run: cannot be read (connection refused)")
    assert run_ranks(_load_unanswered, 2, saved, LAYOUT) == [expected] * 2


@pytest.mark.parametrize("name", RECORDS)
def test_damaged_records_are_damage_on_every_rank(damaged: dict[Any, Damaged], name: str) -> None:
    found = damaged[name]
    assert len(found.errors) == 4
    for kind, message in found.errors:
        assert kind == "DamagedCheckpointError"
        assert message.startswith(f"{found.path}: damaged: {found.file}")
