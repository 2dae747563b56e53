"""`worldvla collect`."""

from __future__ import annotations

from cluster.cli.invocation import Invocation
from eval.config import CollectConfig
from pretrain.telemetry.progress import ProgressDisplay


def run_collect(config: CollectConfig, invocation: Invocation) -> None:
    """Record demonstrations and print one line per task."""
    from eval.demonstrations.collect import collect

    with ProgressDisplay(invocation.console) as display:
        bar = display.bar("collect")
        bar.update(0, config.episodes, detail=f"{config.suite}, opening the simulator")
        collected = collect(config, lambda done, total: bar.update(done, total, detail="demonstrations"))
    for task in collected:
        displaced = f", {task.displaced} displaced" if config.displaced else ""
        kept = ", recorded before" if task.kept else ""
        invocation.console.print(
            f"  {task.path}: {task.episodes} demonstrations{displaced}, {task.steps} steps, "
            f'"{task.task.instruction}" ({task.attempts} attempts{kept})'
        )
