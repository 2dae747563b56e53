"""Instructions of LIBERO's own tasks."""

from __future__ import annotations

import re

LIBERO_SUITE_NAMES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
"""Not those of LIBERO-Pro and LIBERO-Plus, whose instructions may be what they change."""


def libero_language(task: str) -> str:
    """LIBERO's instruction of a task: its name, without the scene at the beginning of LIBERO-10 and 90.

    The `problem_info` of LIBERO's files has another wording for many tasks ("pick the akita black bowl" for
    "pick up the black bowl"); evaluations, LIBERO's own included, use the words of the name.
    """
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", task).replace("_", " ").lower()
