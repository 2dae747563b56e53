"""Reaction to bad steps: an event for each; after too many in a row, a rollback to the newest checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pretrain.checkpoint.load import load
from pretrain.checkpoint.origin import newest_checkpoint
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.config import GuardConfig, TrainingConfig
from pretrain.faults.exit_codes import DivergedError
from pretrain.faults.guard import GuardState, StepGuard, StepVerdict
from pretrain.parallel.engine import Engine
from pretrain.rank_zero import run_on_rank_zero
from pretrain.run_folder import RunFolder
from pretrain.telemetry.recorder import Recorder


def report_skipped_steps(verdicts: Sequence[StepVerdict], recorder: Recorder) -> None:
    """Write an event for each bad step; numbers that are not finite are null."""
    for verdict in verdicts:
        if verdict.skipped:
            recorder.event(
                "skipped",
                step=verdict.step,
                in_a_row=verdict.in_a_row,
                loss=_finite(verdict.loss),
                gradient_norm=_finite(verdict.gradient_norm),
                recent_loss=verdict.recent_loss,
                recent_deviation=verdict.recent_deviation,
            )


def exceeds_limit(verdicts: Sequence[StepVerdict], guard: GuardConfig) -> bool:
    """Whether so many steps in a row were bad that skipping them does not help."""
    return any(verdict.in_a_row >= guard.bad_steps for verdict in verdicts)


def roll_back(
    config: TrainingConfig,
    folder: RunFolder,
    engine: Engine,
    guard: StepGuard,
    writer: CheckpointWriter,
    recorder: Recorder,
) -> None:
    """Load the newest checkpoint and leave out the batches trained on since. Every rank calls it.

    Raises:
        DivergedError: The run was rolled back `guard.rollbacks` times already, or has no checkpoint.
        CheckpointError: A checkpoint that is being written fails.
        InputError: The checkpoint is damaged.
    """
    writer.wait()
    step, rollbacks, skipped = engine.step_count, guard.rollbacks + 1, guard.state().skipped
    problem = f"step {step}: {config.guard.bad_steps} steps in a row were bad (guard.bad_steps)"
    advice = "begin another run.name with a smaller optim.lr"
    if rollbacks > config.guard.rollbacks:
        raise DivergedError(
            f"{problem}, after going back {guard.rollbacks} times (guard.rollbacks); {advice} and "
            "checkpointing.start_from=the newest checkpoint"
        )
    origin = run_on_rank_zero(lambda: newest_checkpoint(config, folder))
    if origin is None:
        raise DivergedError(f"{problem}, and there is no checkpoint yet to go back to; {advice}")
    metadata = load(origin.checkpoint, engine)
    offset = guard.offset + step - engine.step_count
    state = GuardState.from_metadata(metadata)
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
