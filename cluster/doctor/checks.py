"""The checks of `worldvla doctor` in order, and their table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich import box
from rich.table import Table

from cluster.doctor import libero_check, machine_checks, network_checks
from cluster.doctor.check_result import FAIL, OK, WARN, CheckResult
from cluster.doctor.config import DoctorConfig

TABLE_WIDTH = 120  # columns that the table needs; it is not folded to a narrow terminal
_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}

Check = Callable[[], CheckResult | None]
"""Returns None where there is nothing to check."""


def checks(config: DoctorConfig) -> Iterator[Check]:
    """The checks that the settings request."""
    yield machine_checks.python
    yield machine_checks.packages
    yield machine_checks.gpus
    yield machine_checks.gpu_links
    yield machine_checks.memory
    yield partial(network_checks.shared_folder, Path(config.folder))
    yield partial(network_checks.file_locks, Path(config.folder))
    if config.url is not None:
        yield partial(network_checks.storage, config.url)
    if config.all_reduce:
        yield network_checks.all_reduce
    if config.render:
        yield machine_checks.renderer
    yield libero_check.libero
    yield machine_checks.wandb
    yield network_checks.slurm
    yield network_checks.ray_port


def run_check(check: Check) -> CheckResult | None:
    """Run one check; what it depends on may be broken in any way, which is a result too."""
    try:
        return check()
    except Exception as error:
        named = check.func if isinstance(check, partial) else check
        subject = getattr(named, "__name__", str(named)).replace("_", " ")
        cause = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        return CheckResult(subject, FAIL, cause[:100], "repair what is named there, then repeat the check")


def results_table(results: Sequence[CheckResult]) -> Table:
    """One line per check, with its remedy."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("", "state", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for result in results:
        colour = _COLOURS[result.state]
        table.add_row(result.subject, f"[{colour}]{result.state}[/]", result.found, result.remedy)
    return table
