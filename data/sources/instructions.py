"""Instructions of demonstrations, and names made from them."""

from __future__ import annotations

import re

from data.errors import InputError


def clean_instruction(text: str, where: str) -> str:
    """Convert to lower case without quotes and repeated spaces; InputError where nothing is left."""
    cleaned = " ".join(text.strip().strip('"').lower().split())
    if not cleaned:
        raise InputError(f"{where}: the instruction is empty; give each demonstration a task text")
    return cleaned


def slug(text: str) -> str:
    """Convert a text to a part of a name: letters, digits and single underscores, at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:100].strip("_") or "task"
