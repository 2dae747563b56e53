"""Marks each test by its folder, keeps every test process small, and deals the files out to the workers."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports numpy or torch: one thread a process, software rendering, no telemetry.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")
# torch.compile in the process itself: else it starts others, each of which imports torch.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

# A machine that was lent for tests/gpu need not have it.
if importlib.util.find_spec("hypothesis") is not None:
    import hypothesis

    # No example is too slow: a busy machine is no failure.
    hypothesis.settings.register_profile(
        "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("any machine")

TIERS = ("unit", "dist", "integration", "gpu")


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Undo the logging set-up of a command that the test ran in this process; the next may use `caplog`."""
    from pretrain.logs import PACKAGES

    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the marker of its tier: `pytest -m unit`, `-m "not integration"`."""
    root = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(root).parts[0]
        if tier in TIERS:
            item.add_marker(getattr(pytest.mark, tier))


def pytest_collection_finish() -> None:
    """Start the server that ranks are forked from while this process has only imported modules."""
    if ranks := sys.modules.get("tests.support.ranks"):
        ranks.start_rank_server()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal whole files out to the workers, in the order of `tests.support.scheduling`."""
    from tests.support.scheduling import FileScheduling

    return FileScheduling(config, log)
