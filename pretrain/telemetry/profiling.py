"""Traces of chosen steps by torch's profiler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from data.errors import InputError


class StepProfiler:
    """Writes a trace of each unbroken row of the chosen steps: open it at ui.perfetto.dev.

    Args:
        folder: For `steps_00000004_00000005.json` (the optimiser's steps, first and last).
        steps: To trace, counted from the start of the process (the first is 1); none: nothing is done.

    Raises:
        InputError: A step that cannot be.
    """

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        check_profile_steps(steps)
        self._folder = folder
        self._steps = frozenset(steps)
        self._count = 0
        self._first = self._newest = 0
        self._profile: profile | None = None

    def begin(self, step: int) -> None:
        """Optimiser step `step` begins."""
        self._count += 1
        if self._count not in self._steps:
            return
        self._newest = step
        if self._profile is None:
            self._first = step
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)
            self._profile.start()

    def end(self) -> Path | None:
        """The step is over, its checkpoint too; the trace's file, if that was the last step of one."""
        return self.close() if self._count + 1 not in self._steps else None

    def close(self) -> Path | None:
        """Write what was traced, if anything."""
        if self._profile is None:
            return None
        finished, self._profile = self._profile, None
        finished.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"steps_{self._first:08d}_{self._newest:08d}.json"
        finished.export_chrome_trace(str(path))
        return path


def check_profile_steps(steps: Sequence[int]) -> None:
    """Refuse steps that never come.

    Raises:
        InputError: One is below 1.
    """
    if any(step < 1 for step in steps):
        raise InputError(
            f"telemetry.profile_steps={list(steps)}, expected steps from 1 (the first of the process) on"
        )
