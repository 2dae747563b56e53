"""Names of the phases of a training step, as they appear in profiler traces."""

from __future__ import annotations

from torch.profiler import record_function

PHASES: tuple[str, ...] = ("data", "forward", "backward", "optimizer", "checkpoint", "validation")


def phase(name: str) -> record_function:
    """A context that marks a phase of the step in traces; costs microseconds without a profiler.

    Args:
        name: One of `PHASES`.
    """
    assert name in PHASES
    return record_function(name)
