"""`worldvla serve`."""

from __future__ import annotations

from cluster.cli.invocation import Invocation
from cluster.failures import CommandFailedError
from eval.config import ServeConfig


def run_serve(config: ServeConfig, invocation: Invocation) -> None:
    """Serve a policy until ctrl-C or SIGTERM.

    Raises:
        CommandFailedError: The policy's process ended while the policy was loaded.
    """
    from eval.serve.command import serve_command
    from eval.serve.policy_process import PolicyLostError

    show = invocation.console.print
    try:
        serve_command(
            config, lambda address: show(f"serving {config.checkpoint} at {address}; ctrl-C ends it")
        )
    except PolicyLostError as error:
        raise CommandFailedError(
            f"serve: the policy could not be loaded ({error}); `worldvla doctor` checks memory and GPUs"
        ) from error
