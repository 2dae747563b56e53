"""`python -m cluster.resources.await_nodes ADDRESS NODES SECONDS`: wait until a Ray cluster has NODES nodes.

Exit code 0 when it has; 1, with one line, on a timeout.
"""

from __future__ import annotations

import logging
import sys
import time

_POLL_SECONDS = 0.5


def await_nodes(address: str, nodes: int, seconds: float) -> str | None:
    """Wait until `nodes` nodes of the Ray cluster at `address` are alive.

    Returns:
        None, or on a timeout what is missing.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            alive = _count_alive(address)
            missing = f"{alive} of {nodes} nodes have joined Ray at {address}"
            if alive >= nodes:
                return None
        except OSError as error:  # the head does not listen yet
            missing = f"Ray at {address} does not answer ({error})"
        if time.monotonic() > deadline:
            return missing
        time.sleep(_POLL_SECONDS)


def _count_alive(address: str) -> int:
    import ray

    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    return sum(1 for node in ray.nodes() if node["Alive"])


def main(arguments: list[str]) -> int:
    """Wait as the command line says; return the exit code."""
    address, nodes, seconds = arguments
    missing = await_nodes(address, int(nodes), float(seconds))
    if missing is None:
        return 0
    print(f"error: {missing} after {seconds} s; see the nodes' logs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
