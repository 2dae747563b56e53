"""What is drawn for an episode: a pure function of a seed, what it is for, and the episode's key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def draw(choices: Sequence[T], seed: int, what: str, key: str) -> T:
    """One of the choices (at least one), each equally likely over many keys.

    Args:
        choices: In the order of the data set or of the settings.
        seed: The setting `draw_seed`.
        what: What is drawn (`"instruction"`), so that two draws of an episode do not depend on each other.
        key: The episode.
    """
    digest = hashlib.sha256(f"{seed}\n{what}\n{key}".encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]
