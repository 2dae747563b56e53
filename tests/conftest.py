"""Marks each test by its folder and keeps every test process small."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports numpy or torch: one thread a process, software rendering, no telemetry.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

TIERS = ("unit", "dist", "integration", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the marker of its tier: `pytest -m unit`, `-m "not integration"`."""
    root = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(root).parts[0]
        if tier in TIERS:
            item.add_marker(getattr(pytest.mark, tier))
