"""`worldvla doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict

from cluster.cli.invocation import Invocation
from cluster.doctor.check_result import FAIL, CheckResult
from cluster.doctor.checks import TABLE_WIDTH, checks, results_table, run_check
from cluster.doctor.config import DoctorConfig
from cluster.failures import CommandFailedError


def run_doctor(config: DoctorConfig, invocation: Invocation) -> None:
    """Check this machine or allocation and print the results with remedies.

    Raises:
        CommandFailedError: A check failed.
    """
    results: list[CheckResult] = []
    for check in checks(config):
        with invocation.console.status("checking"):
            result = run_check(check)
        if result is not None:
            results.append(result)
    failed = [result.subject for result in results if result.state == FAIL]
    if invocation.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(result) for result in results]}, indent=2))
    else:
        invocation.console.width = max(invocation.console.width, TABLE_WIDTH)
        invocation.console.print(results_table(results))
    if failed:
        raise CommandFailedError(f"not fit for a run: {', '.join(failed)}; the table says what to do")
