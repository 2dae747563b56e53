"""`worldvla imagine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.cli.invocation import Invocation
from cluster.failures import CommandFailedError
from eval.config import ImagineConfig

if TYPE_CHECKING:
    from data.prepare.preparer import Replay
    from eval.world_model.results import ImagineResult


def run_imagine(config: ImagineConfig, invocation: Invocation) -> None:
    """Roll the world model out along recorded episodes and print its scores.

    Raises:
        CommandFailedError: A metric that was requested could not be computed; everything else is written.
    """
    from eval.world_model.imagine import imagine
    from eval.world_model.score_text import scores_text
    from eval.world_model.table import scores_table

    show = invocation.console.print
    show(f"  imagining {config.frames} frames")
    result = imagine(config, replay=_replay() if config.replay else None)
    if invocation.json:
        print(result.scores.read_text(encoding="utf-8"), end="")
        _raise_failure(result)
        return
    first = result.overall.rollouts[0]
    show(f"  {result.picture}: {scores_text(result.to_json())}, the first {first.episode} ({first.split})")
    if result.gif is not None:
        show(f"  {result.gif}: true beside predicted frames")
    table = scores_table(result)
    show(table if table.row_count else f"  {table.caption}")
    _raise_failure(result)


def _replay() -> Replay:
    from eval.demonstrations.replay import replay_demonstration  # imports simulators

    return replay_demonstration


def _raise_failure(result: ImagineResult) -> None:
    if result.failures:
        failed = "; ".join(f"{metric.upper()} {reason}" for metric, reason in result.failures.items())
        raise CommandFailedError(
            f"imagine: {failed}; the rollouts and the other scores are in {result.scores.parent}"
        )
