"""`python -m pretrain.torchrun OPTIONS -m pretrain.main ...`: torchrun that ends with its ranks' exit code.

torchrun itself ends with 1 whatever the ranks' codes are; a batch script has to distinguish 85 (asked to end,
a checkpoint is written) from a failure. SIGUSR1 is left to the ranks: Slurm sends it to every process of a
step.
"""

from __future__ import annotations

import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main(arguments: list[str]) -> int:
    """Run the ranks of this node; return 0, or the exit code of the rank that failed first."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited by the ranks until they handle it
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"rank {rank} ended with {failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        print(f"ended by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
