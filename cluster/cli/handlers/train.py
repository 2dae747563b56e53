"""`worldvla train`."""

from __future__ import annotations

from cluster.cli.invocation import Invocation
from cluster.config import RootConfig


def run_train(config: RootConfig, invocation: Invocation) -> None:
    """Train on Ray with evaluations beside it, and write the report."""
    from cluster.run.preflight import check_data
    from cluster.run.supervisor import supervise
    from cluster.run.worker_entry_points import evaluate_checkpoint, train_rank
    from eval.report.page import write_report

    check_data(config)
    folder = supervise(config, invocation.console, train_rank, evaluate_checkpoint)
    page = write_report(folder.path)
    invocation.console.print(f"  run folder {folder.path}, report {page}")
