"""What is done about bad steps: an event for each; after too many in a row back to the newest checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pretrain.checkpoint.load import load
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import DivergedError
from pretrain.faults.guard import Finding, GuardState, StepGuard
from pretrain.parallel.engine import Engine
from pretrain.run_folder import RunFolder
from pretrain.start import newest_checkpoint, on_first_rank
from pretrain.telemetry.recorder import Recorder


def tell(findings: Sequence[Finding], recorder: Recorder) -> None:
    """Write an event for each bad step; numbers that are not finite are null."""
    for finding in findings:
        if finding.skipped:
            recorder.event(
                "skipped",
                step=finding.step,
                in_a_row=finding.in_a_row,
                loss=_finite(finding.loss),
                gradient_norm=_finite(finding.gradient_norm),
                recent_loss=finding.mean,
                recent_deviation=finding.deviation,
            )


def too_many(findings: Sequence[Finding], config: TrainingConfig) -> bool:
    """Whether so many steps in a row are bad that leaving them out does not help."""
    return any(finding.in_a_row >= config.guard.bad_steps for finding in findings)


def go_back(
    config: TrainingConfig,
    folder: RunFolder,
    engine: Engine,
    guard: StepGuard,
    writer: CheckpointWriter,
    recorder: Recorder,
) -> None:
    """Load the newest checkpoint; the batches trained on since are not seen again. Every rank calls it.

    Raises:
        DivergedError: The run has gone back `guard.rollbacks` times already, or has no checkpoint.
        CheckpointError: A checkpoint that is being written fails.
        InputError: The checkpoint is damaged.
    """
    writer.wait()
    step, rollbacks, skipped = engine.step_count, guard.rollbacks + 1, guard.state().skipped
    bad = f"step {step}: {config.guard.bad_steps} steps in a row were bad (guard.bad_steps)"
    advice = "begin another run.name with a smaller optim.lr"
    if rollbacks > config.guard.rollbacks:
        raise DivergedError(
            f"{bad}, after going back {guard.rollbacks} times (guard.rollbacks); {advice} and "
            "checkpointing.start_from=the newest checkpoint"
        )
    origin = on_first_rank(lambda: newest_checkpoint(config, folder))
    if origin is None or not origin.resumes:
        raise DivergedError(f"{bad}, and there is no checkpoint yet to go back to; {advice}")
    metadata = load(origin.checkpoint, engine)
    offset = guard.offset + step - engine.step_count
    state = GuardState.of(metadata)
    guard.restore(replace(state, offset=offset, rollbacks=rollbacks, skipped=skipped, in_a_row=0))
    recorder.rewind(metadata["tokens"])
    recorder.event(
        "rolled_back",
        step=engine.step_count,
        from_step=step,
        checkpoint=str(origin.checkpoint),
        rollbacks=rollbacks,
        left_out_batches=offset,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
