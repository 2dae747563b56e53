"""`worldvla doctor`: is this machine, or this allocation, fit for a run?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table

from cluster.doctor import machine as examine_machine
from cluster.doctor import network as examine_cluster
from cluster.doctor.config import DoctorConfig
from cluster.doctor.finding import FAIL, OK, WARN, Finding
from cluster.failures import CommandFailedError
from cluster.invocation import Invocation

_WIDTH = 120  # a narrow terminal, or none, must not break the lines
_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


def doctor(config: DoctorConfig, call: Invocation) -> None:
    """Examine, show a table (or JSON) with the remedies.

    Raises:
        CommandFailedError: Something fails.
    """
    found: list[Finding] = []
    for examine in _examinations(config):
        with call.console.status("examining"):
            finding = examine()
        found += [finding] if finding is not None else []
    failed = [finding.subject for finding in found if finding.state == FAIL]
    if call.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        call.console.width = max(call.console.width, _WIDTH)
        call.console.print(_table(found))
    if failed:
        raise CommandFailedError(f"not fit for a run: {', '.join(failed)}; the table tells what to do")


def _examinations(config: DoctorConfig) -> Iterator[Callable[[], Finding | None]]:
    yield examine_machine.python
    yield examine_machine.packages
    yield examine_machine.gpus
    yield examine_machine.gpu_links
    yield examine_machine.memory
    yield lambda: examine_cluster.shared_folder(Path(config.folder))
    if config.url is not None:
        url = config.url
        yield lambda: examine_cluster.storage(url)
    if config.all_reduce:
        yield examine_cluster.all_reduce
    if config.render:
        yield examine_machine.renderer
    yield examine_machine.wandb
    yield examine_cluster.slurm
    yield examine_cluster.ray_port


def _table(found: list[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("", "state", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in found:
        colour = _COLOURS[finding.state]
        table.add_row(finding.subject, f"[{colour}]{finding.state}[/]", finding.found, finding.remedy)
    return table
