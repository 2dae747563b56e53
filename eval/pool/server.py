"""The policy server: a process that decides for many environments at once."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

from eval.policy.interface import decide
from eval.pool.child import Deadline, Heartbeat, end_with_parent
from eval.pool.messages import PolicySource, PolicySpec, TimeLimits, remote_error


def run_policy_server(
    connection: Connection, deadline: Deadline, source: PolicySource, limits: TimeLimits
) -> None:
    """Body of the process: send the policy's spec, then answer lists of observations.

    An answer has for each observation its actions [K, 7] and their entropy [K], or None; or it is a
    `RemoteError`, after which the process ends.

    Args:
        connection: To the pool.
        deadline: Renewed before every operation that may hang.
        source: The policy.
        limits: Time limits.
    """
    end_with_parent()
    heartbeat = Heartbeat(deadline, limits.answer)
    # Without it cuBLAS may choose another order of summation from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        policy = source.load()
        connection.send(PolicySpec.of(policy))
        while True:
            heartbeat.pause()
            observations = connection.recv()
            heartbeat.beat()
            actions, entropy = decide(policy, observations)
            rows = [None] * len(actions) if entropy is None else entropy
            connection.send(list(zip(actions, rows, strict=True)))
    except EOFError:
        return
    except Exception as error:  # any exception is sent to the pool; the process ends here
        connection.send(remote_error(error))
