"""Locks of files, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from data.locks import LocksMissingError, lock


def test_two_openings_of_a_file_exclude_each_other_until_one_is_closed(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    lock(first)
    with pytest.raises(BlockingIOError):
        lock(second, wait=False)
    os.close(first)
    lock(second, wait=False)
    os.close(second)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_from_other_errors(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / "lock").open("w") as file, pytest.raises(LocksMissingError, match=os.strerror(number)):
        lock(file.fileno())
    number = errno.EIO
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="Input/output") as caught:
        lock(file.fileno())
    assert not isinstance(caught.value, LocksMissingError)
