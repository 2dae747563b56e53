"""Traces of chosen steps by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from pretrain.config import TelemetryConfig
from pretrain.hooks import StepHook
from pretrain.run_folder import RunFolder


class StepProfiler(StepHook):
    """Writes one trace for each run of consecutive chosen steps; open it at ui.perfetto.dev.

    Args:
        folder: Folder for `steps_00000004_00000005.json` (first and last optimiser step).
        steps: Steps to trace, counted from the start of the process (the first is 1); empty: none.
        report: Called as `report("profile", step=..., trace=...)` for each file.
    """

    def __init__(self, folder: Path, steps: Sequence[int], report: Callable[..., None]) -> None:
        self._folder, self._report = folder, report
        self._steps = frozenset(steps)
        self._count = 0
        self._first = self._last = 0
        self._profile: profile | None = None

    @classmethod
    def of(cls, settings: TelemetryConfig, rank: int, folder: RunFolder, report: Callable[..., None]) -> Self:
        """The profiler of a rank; only rank 0 traces, and only if `telemetry.profile` is set."""
        steps = settings.profile_steps if settings.profile and rank == 0 else ()
        return cls(folder.profile, steps, report)

    def before_step(self, step: int) -> None:
        """Start a trace if optimiser step `step` is chosen and none is running."""
        self._count += 1
        if self._count not in self._steps:
            return
        self._last = step
        if self._profile is None:
            self._first = step
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)
            self._profile.start()

    def after_step(self, step: int) -> None:
        """Write the trace if the next step does not belong to it."""
        if self._count + 1 not in self._steps:
            self.close()

    def close(self) -> None:
        """Write the trace that is running, if any."""
        if self._profile is None:
            return
        finished, self._profile = self._profile, None
        finished.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"steps_{self._first:08d}_{self._last:08d}.json"
        finished.export_chrome_trace(str(path))
        self._report("profile", step=self._last, trace=str(path))
