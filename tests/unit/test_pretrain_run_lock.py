"""One command at a time trains in a run folder, and one that is refused changes nothing."""

from __future__ import annotations

import errno
import fcntl
import itertools
import multiprocessing
import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from data import locks
from data.errors import InputError
from pretrain.run_layout import RunLayout
from pretrain.run_lock import exclusive_access

HELD = "r: another command is training in this folder"


def is_free(folder: RunLayout) -> bool:
    """Whether a command could train in the folder now."""
    try:
        with exclusive_access(folder):
            return True
    except InputError as error:
        if HELD in str(error):
            return False
        raise


def test_a_second_command_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    folder = RunLayout(tmp_path / "runs" / "r")
    with exclusive_access(folder):
        folder.config.write_text("of the first")
        before = {path.name: path.stat().st_mtime_ns for path in folder.path.iterdir()}
        assert not is_free(folder)
        assert {path.name: path.stat().st_mtime_ns for path in folder.path.iterdir()} == before
    assert is_free(folder)
    assert folder.config.read_text() == "of the first"


def hold_and_die(folder: RunLayout) -> None:
    with exclusive_access(folder):
        folder.config.touch()
        os.kill(os.getpid(), 9)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    folder = RunLayout(tmp_path / "r")
    process = multiprocessing.get_context("fork").Process(target=hold_and_die, args=(folder,))
    process.start()
    process.join()
    assert folder.config.exists()
    assert is_free(folder)


def test_a_command_that_writes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    folder = RunLayout(tmp_path / "runs" / "deep" / "r")
    with exclusive_access(folder):
        assert folder.supervisor_lock.exists()
    assert list(tmp_path.iterdir()) == []
    folder.path.mkdir(parents=True)
    assert is_free(folder)
    assert list(folder.path.iterdir()) == [], "the user's own folder stays"


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = RunLayout(tmp_path / "r"), list[int]()

    def slow(descriptor: int, wait: bool = True) -> None:
        calls.append(descriptor)
        if len(calls) == 1:  # the holder ends between the opening of the file and its lock
            folder.supervisor_lock.unlink()
        lock(descriptor, wait)

    lock = locks.lock
    monkeypatch.setattr(locks, "lock", slow)
    with exclusive_access(folder):
        assert len(calls) == 2
        assert not is_free(folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("a file")
    with (
        pytest.raises(InputError, match=r"r: cannot write the run folder \(.+\); set run.dir"),
        exclusive_access(RunLayout(tmp_path / "r")),
    ):
        raise AssertionError


def without_locks(monkeypatch: pytest.MonkeyPatch, *below: Path) -> None:
    """Make the file systems of these folders ones without flock."""
    flock = fcntl.flock

    def refuse(descriptor: int, operation: int) -> None:
        if any(Path(f"/proc/self/fd/{descriptor}").resolve().is_relative_to(folder) for folder in below):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_commands_of_one_machine_still_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs, temporary = tmp_path / "runs", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    without_locks(monkeypatch, runs)
    folder = RunLayout(runs / "r")
    with exclusive_access(folder):
        (warning,) = caplog.messages
        assert warning == (
            f"{folder.path}: its file system has no locks (Function not implemented): a command on another "
            "machine or of another user that writes to this folder is not noticed; start only one"
        )
        assert not is_free(folder)
        assert is_free(RunLayout(runs / "s"))
    assert list(temporary.iterdir()) == []
    assert is_free(folder)


def test_without_any_locks_a_command_runs_and_says_what_it_cannot_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    without_locks(monkeypatch, tmp_path)
    assert is_free(RunLayout(tmp_path / "r"))
    assert "a command beside this one that writes to this folder is not noticed" in caplog.text
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_holder_is_named_and_one_on_another_machine_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, seconds = RunLayout(tmp_path / "r"), itertools.count()
    monkeypatch.setattr(locks.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(locks.time, "sleep", lambda _: None)
    with ExitStack() as holder:
        holder.enter_context(exclusive_access(folder))
        folder.config.touch()
        with pytest.raises(
            InputError, match=rf"folder \(process {os.getpid()} on {socket.gethostname()}\); wait"
        ):
            holder.enter_context(exclusive_access(folder))
        assert caplog.messages == [], "at once on the same machine"
        folder.supervisor_lock.write_text("node7 123\n")
        with pytest.raises(InputError, match=r"folder \(process 123 on node7\); wait for it"):
            holder.enter_context(exclusive_access(folder))
        assert next(seconds) > 120
        assert [message.split("; ")[1] for message in caplog.messages] == [
            "waiting up to 120 s, in case that machine is lost"
        ]
        monkeypatch.setattr(locks.time, "sleep", lambda _: holder.close())
        assert is_free(folder)
