"""`worldvla eval`."""

from __future__ import annotations

import json

from cluster.cli.invocation import Invocation
from cluster.failures import CommandFailedError
from eval.config import EvalCommandConfig
from pretrain.telemetry.progress import ProgressDisplay


def run_eval(config: EvalCommandConfig, invocation: Invocation) -> None:
    """Evaluate a policy on a suite and print the results.

    Raises:
        CommandFailedError: Every episode ended in an error, so that nothing was measured.
    """
    from eval.evaluation.evaluate import evaluate_command
    from eval.evaluation.reproduction import reproduction_table
    from eval.evaluation.results import results_table

    with ProgressDisplay(invocation.console) as display:
        bar = display.bar(f"evaluate {config.suite}")
        bar.update(0, detail="opening the simulator")
        results = evaluate_command(
            config, lambda state: bar.update(state.done, state.total, detail=str(state))
        )
    if invocation.json:
        print(json.dumps(results.to_json(), indent=2))
    else:
        invocation.console.print(results_table(results))
        published = reproduction_table(results.suite, results.reproduction())
        if published is not None:
            invocation.console.print(published)
        if config.record is not None and results.success_rate is not None:
            invocation.console.print(f"episodes: {config.record}", markup=False)
    if results.success_rate is None:
        first = results.episodes[0].error
        raise CommandFailedError(
            f"eval: all {results.errors} episodes ended in an error, the first in {first}; nothing was "
            "measured: fix the cause, the same command repeats them"
        )
