"""Checks of every kind of store before and after a request."""

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
    """Refuse bytes [offset, offset + size) that do not lie within an object of `length` bytes.

    Raises:
        InputError: They do not; `where` leads the message.
    """
    if offset < 0 or size < 0 or offset + size > length:
        raise InputError(
            f"{where}: cut short: {length} bytes found, bytes {offset} to {offset + size} expected; "
            "copy or prepare it again"
        )
