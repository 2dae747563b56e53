"""Entry points of the processes that Ray starts.

Heavy libraries are imported in these processes and not in the command itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.run.evaluation_group import EvaluationJob, Progress
from data.errors import InputError

if TYPE_CHECKING:
    from cluster.config import PrepareCommandConfig
    from data.prepare.preparer import Preparer
    from pretrain.config import TrainingConfig
    from pretrain.hooks import StepHook
    from pretrain.run_start import RunStart

_LOG = logging.getLogger(__name__)


def train_rank(config: TrainingConfig, start: RunStart, hooks: Sequence[StepHook] = ()) -> None:
    """Train as one rank, in the environment that torchrun would give it."""
    from pretrain.allocator import configure_allocator
    from pretrain.compile_caches import use_compile_caches
    from pretrain.library_warnings import silence_known_warnings

    silence_known_warnings()
    use_compile_caches()
    configure_allocator(config.trainer.allocator, os.environ)
    from pretrain.trainer import train

    train(config, start, hooks)


def make_preparer(config: PrepareCommandConfig) -> Preparer:
    """Build the preparer of this process; it computes on the GPU that the process was given, if any."""
    from data.prepare.preparer import Preparer
    from data.tokens.image import ImageTokenizer

    device = "cuda" if config.gpus_per_worker > 0 else "cpu"
    tokenizer = ImageTokenizer.load(config.image_tokenizer, device=device)
    if not config.replay:
        return Preparer(config, tokenizer)
    from eval.demonstrations.replay import replay_demonstration
    from eval.simulator.rendering import render_in_software

    if device == "cuda":
        render_in_software("it tokenises with CUDA, and EGL beside CUDA in one process is known to abort")
    return Preparer(config, tokenizer, replay_demonstration)


def evaluate_checkpoint(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    """Run the checkpoint's policy on the suite and, if requested, world-model rollouts.

    Returns:
        The content of `results.json`, and under `world_model` the scores of the rollouts.

    Raises:
        InputError: The checkpoint or the simulator cannot be used.
    """
    from eval.evaluation.evaluate import evaluate
    from eval.open_loop.compare import compare_open_loop
    from eval.policy.source import PolicyReference
    from pretrain.checkpoint.fetch import local_checkpoint
    from pretrain.compile_caches import use_compile_caches
    from pretrain.run_layout import RunLayout

    device = "cuda" if job.settings.gpus > 0 else "cpu"  # as it was placed: others have the other GPUs
    if device == "cuda":
        use_compile_caches()
    checkpoint = str(local_checkpoint(job.checkpoint, run=RunLayout.of_evaluation(job.out).path))
    policy = PolicyReference(
        checkpoint,
        job.settings.batch,
        device=device,
        precision=job.settings.precision,
        decoder=job.settings.decoder,
        embodiment=job.settings.embodiment,
        weights=job.settings.weights,
    )
    results = evaluate(
        policy,
        job.settings,
        job.out,
        step=job.step,
        progress=lambda state: progress(state.done, state.total),
    )
    content = results.to_json()
    if job.settings.imagine_episodes > 0:
        try:
            compare_open_loop(policy, job.out, job.settings.imagine_episodes)
        except InputError as error:  # of the data, for example: the results in the simulator stand without it
            _LOG.warning("no open loop at step %d: %s", job.step, error)
    if job.settings.imagine_frames > 0 and job.settings.imagine_episodes > 0:
        from eval.config import ImagineConfig
        from eval.world_model.imagine import imagine

        rollouts = imagine(
            ImagineConfig(
                checkpoint=checkpoint,
                out=str(job.out),
                episodes=job.settings.imagine_episodes,
                frames=job.settings.imagine_frames,
                lpips_weights=job.settings.lpips_weights,
                fvd_network=job.settings.fvd_network,
                precision=job.settings.precision,
                weights=job.settings.weights,
            ),
            device,
        )
        content["world_model"] = rollouts.summary()
    return content
