"""One evaluation at a time writes to a folder."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path

import pytest

from data import locks
from data.errors import InputError
from eval.evaluation.folder_lock import LOCK_FILE, only_evaluation


def test_the_lock_of_an_evaluation_on_another_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(locks.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(locks.time, "sleep", lambda _: None)
    with ExitStack() as holder:
        holder.enter_context(only_evaluation(tmp_path))
        (tmp_path / LOCK_FILE).write_text("node7 123\n")
        with pytest.raises(InputError, match=r"this folder \(process 123 on node7\); wait for it"):
            holder.enter_context(only_evaluation(tmp_path))
        assert next(seconds) > 120
        (line,) = caplog.messages
        assert line == (
            f"{tmp_path} is locked (process 123 on node7); waiting up to 120 s, in case that machine is lost"
        )
        monkeypatch.setattr(locks.time, "sleep", lambda _: holder.close())  # the file server gives it up
        with only_evaluation(tmp_path):
            pass


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with only_evaluation(tmp_path):
        pass
    (line,) = caplog.messages
    assert "has no locks (Function not implemented): a command beside this one that writes to this" in line
