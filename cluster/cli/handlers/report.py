"""`worldvla report`."""

from __future__ import annotations

from pathlib import Path

from cluster.cli.config import ReportConfig
from cluster.cli.invocation import Invocation
from data.errors import InputError


def run_report(config: ReportConfig, invocation: Invocation) -> None:
    """Write the report of a run or of an evaluation, or the comparison of several runs.

    Raises:
        InputError: Not exactly one of `run` and `runs` is given, or a folder does not exist.
    """
    if (config.run is None) == (config.runs is None):
        raise InputError("report: give one of run=FOLDER and runs=[FOLDER,FOLDER]")
    for folder in [config.run] if config.runs is None else config.runs:
        if not Path(folder or "").is_dir():
            name = "run" if config.runs is None else "runs"
            raise InputError(f"{name}={folder}: no such folder; name that of a run (runs/<name>)")
    if config.runs is not None:
        from eval.report.comparison import COMPARISON, write_comparison

        invocation.console.print(f"  {write_comparison(config.runs, config.out or COMPARISON)}")
    elif config.run is not None:
        from eval.report.page import write_report

        invocation.console.print(f"  {write_report(config.run, config.out)}")
