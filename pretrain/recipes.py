"""Recipes: files of `worldvla prepare`'s settings for one data set, in place of the defaults."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError

_KEY = "recipe"


def requested_recipe(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of the last `recipe=...` among the words of a command line, and the other words.

    Without its quotes; None where there is none, or it is null.
    """
    words = [(word, *word.partition("=")[::2]) for word in overrides]
    values = [value for _, key, value in words if key == _KEY]
    others = [word for word, key, _ in words if key != _KEY]
    if not values or values[-1].lower() in ("", "null"):
        return None, others
    value = values[-1]
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value, others


def recipe_file(name: str, folder: Path) -> Path | None:
    """The file of a recipe: a path as it is, or a name in a folder; None: there is none of that name."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(os.path.expanduser(name))
    path = folder / f"{name}.yaml"
    return path if path.is_file() else None


def checksum(path: Path) -> str:
    """SHA-256 of a recipe's file (InputError: it cannot be read)."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give recipe= a name or a file"
        ) from error
