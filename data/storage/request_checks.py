"""What every kind of store checks before and after a request."""

from __future__ import annotations

import re

from data.errors import InputError

_OBJECT_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")


def checked_name(name: str) -> str:
    """Return `name` if it is relative, without ``..``, links or odd characters.

    Raises:
        InputError: It is not.
    """
    if not _OBJECT_NAME.fullmatch(name):
        raise InputError(f"object name {name[:80]!r} is not a plain relative name; the index is not ours")
    return name


def check_range(where: str, length: int, offset: int, size: int) -> None:
    """InputError unless bytes [offset, offset + size) lie within an object of `length` bytes."""
    if offset < 0 or size < 0 or offset + size > length:
        raise InputError(
            f"{where}: cut short: {length} bytes found, bytes {offset} to {offset + size} expected; "
            "copy or prepare it again"
        )


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that obstore adds."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
