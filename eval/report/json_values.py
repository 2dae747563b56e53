"""Values in JSON files that others have written: each may be absent, null, not finite, or of another type."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.json_record import read_json_object

Json = Mapping[str, Any]


def read_json(path: Path) -> Json:
    """Read a file with one JSON object.

    Raises:
        InputError: The file contains something else.
    """
    return read_json_object(path, "delete it or restore it")


def number(values: Json, key: str) -> float | None:
    """A finite number in a JSON object, else None."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) <= sys.float_info.max:  # not a number, infinite, or an integer beyond all of them
        return None
    return float(value)


def integer(values: Json, key: str) -> int | None:
    """A finite number in a JSON object as an integer, else None."""
    value = number(values, key)
    return None if value is None else int(value)


def mapping(values: Json, key: str) -> Json:
    """An object inside a JSON object, empty where there is none."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def rows(values: Json, key: str) -> list[Json]:
    """A list of objects inside a JSON object, empty where there is none."""
    value = values.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
