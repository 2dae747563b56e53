"""Sizes in bytes, as written in settings."""

from __future__ import annotations

import re

from data.errors import InputError

_UNITS = {"": 1e9, "GB": 1e9, "GIB": 2.0**30, "TB": 1e12, "TIB": 2.0**40, "MB": 1e6, "MIB": 2.0**20}


def parse_bytes(name: str, text: str) -> float:
    """Bytes of `80GB`, `79.6GiB` or `80` (GB).

    Raises:
        InputError: The text is no size above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None or float(match.group(1)) <= 0:
        raise InputError(
            f"{name}={text}: expected a size such as 80GB, 79.6GiB or 80 (GB); correct the setting"
        )
    return float(match.group(1)) * unit
