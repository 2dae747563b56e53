"""`python -m cluster.resources.await_nodes ADDRESS NODES SECONDS`: wait until a Ray cluster has NODES nodes.

Exit code 0 when it has; 1, with one line, when it has not in time.
"""

from __future__ import annotations

import logging
import sys
import time

_SECONDS_BETWEEN_LOOKS = 0.5


def await_nodes(address: str, nodes: int, seconds: float) -> str | None:
    """Wait until `nodes` nodes of the Ray cluster at `address` are alive; None, or what is missing."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = _alive(address)
            missing = f"{found} of {nodes} nodes have joined Ray at {address}"
            if found >= nodes:
                return None
        except OSError as error:  # nobody answers yet
            missing = f"Ray at {address} does not answer ({error})"
        if time.monotonic() > end:
            return missing
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _alive(address: str) -> int:
    import ray

    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    return sum(1 for node in ray.nodes() if node["Alive"])


def main(arguments: list[str]) -> int:
    """Wait as the command line says; the exit code."""
    address, nodes, seconds = arguments
    missing = await_nodes(address, int(nodes), float(seconds))
    if missing is None:
        return 0
    print(f"error: {missing} after {seconds} s; see the nodes' logs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
