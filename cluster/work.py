"""What the processes do that Ray starts; what they need is imported there and not in the command itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.eval_group import EvaluationJob, Progress

if TYPE_CHECKING:
    from pretrain.config import TrainingConfig


def train_rank(config: TrainingConfig) -> None:
    """Train as one rank of the process group that exists."""
    from pretrain.upstream import silence_known_warnings

    silence_known_warnings()
    from pretrain.trainer import train

    train(config)


def evaluate_checkpoint(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    """Run the checkpoint's policy on the suite and, where asked for, a world-model rollout.

    Returns:
        The content of `results.json`.

    Raises:
        InputError: The checkpoint or the simulator cannot be used.
    """
    from eval.suite import PolicyName, evaluate

    results = evaluate(
        PolicyName(str(job.checkpoint)),
        job.settings.suite,
        tasks=job.settings.tasks,
        episodes=job.settings.episodes,
        out=job.out,
        step=job.step,
        horizon=job.settings.horizon,
        workers=job.settings.workers,
        progress=progress,
    )
    if job.imagine:
        from eval.config import ImagineConfig
        from eval.world_model import imagine

        imagine(ImagineConfig(checkpoint=str(job.checkpoint), out=str(job.out)))
    return results.to_json()
