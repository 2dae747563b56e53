"""The policy server: a process that decides for many environments at once."""

from __future__ import annotations

import os
import traceback
from multiprocessing.connection import Connection

from data.errors import InputError
from eval.pool.child import Deadline, Heart, end_with_parent
from eval.pool.messages import PolicyShape, PolicySource, Raised, TimeLimits


def serve(connection: Connection, deadline: Deadline, source: PolicySource, limits: TimeLimits) -> None:
    """Body of the process: says the policy's shape, then answers lists of observations.

    An answer is the array of actions [B, K, 7], or `Raised`, after which the process ends.

    Args:
        connection: To the pool.
        deadline: Moved before whatever may hang.
        source: The policy.
        limits: Time limits.
    """
    end_with_parent()
    heart = Heart(deadline, limits.answer)
    # Without it cuBLAS may choose another order of summation from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        policy = source.load()
        connection.send(PolicyShape.of(policy))
        while True:
            heart.rest()
            observations = connection.recv()
            heart.beat()
            connection.send(policy.act(observations))
    except EOFError:
        return
    except Exception as error:  # whatever it is, the pool is told: this is the end of the process
        connection.send(Raised(str(error), isinstance(error, InputError), traceback.format_exc()))
