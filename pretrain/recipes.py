"""Recipes: files of `worldvla prepare`'s settings for one data set, in place of the defaults."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError

_KEY = "recipe"


def requested_recipe(overrides: Sequence[str]) -> str | None:
    """The value of the last `recipe=...` among the words of a command line, without quotes; None: none."""
    values = [value for key, _, value in (word.partition("=") for word in overrides) if key == _KEY]
    if not values or values[-1].lower() in ("", "null"):
        return None
    value = values[-1]
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


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
