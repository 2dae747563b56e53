"""Kills a rank of a training at a moment that a seed decides.

The moment is a number of Python calls after an occasion: the beginning of a start, of some step, of the
copying of some checkpoint to host memory, which is between the save and the next update, or of the writing of
its files. It can fall between any two lines, and the same seed finds the same
place again. The signal is SIGKILL: nothing is cleaned up, as when the kernel or a node ends a process.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.staging import HostCopies
from pretrain.config import TrainingConfig
from pretrain.parallel.engine import Engine
from tests.support.training_case import try_train

# At most so many calls and returns, C functions included, after each occasion; each lasts far longer.
CALLS = {"start": 40_000, "step": 6_000, "copy": 50, "save": 900}
WAIT = {"start": 1, "step": 4, "copy": 2, "save": 2}  # largest number of an occasion in one start


@dataclass(frozen=True, slots=True)
class Kill:
    """When a rank dies.

    Attributes:
        rank: Number of the rank.
        occasion: `start`, `step`, `copy` or `save`.
        number: Which occasion of this kind in its process, from 1.
        calls: Number of calls after it.
    """

    rank: int
    occasion: str
    number: int
    calls: int

    @classmethod
    def draw(cls, draws: random.Random, ranks: int, occasion: str) -> Kill:
        """A random rank and moment."""
        number = draws.randint(1, WAIT[occasion])
        return cls(draws.randrange(ranks), occasion, number, draws.randrange(CALLS[occasion]))


def train_until_killed(config: TrainingConfig, kill: Kill | None) -> str:
    """`try_train` on this rank, which dies if the kill is for it."""
    if kill is not None and os.environ["RANK"] == str(kill.rank):
        if kill.occasion == "start":
            _count_down(kill.calls)
        elif kill.occasion == "step":
            _at_call_of(Engine, "step", kill)
        elif kill.occasion == "copy":  # in the thread that saves, which the next update waits for
            _at_call_of(HostCopies, "run", kill)
        else:  # the thread that saves calls it first for the rank's own files
            _at_call_of(CheckpointLocation, "write", kill)
    return try_train(config)


def _at_call_of(owner: type, method: str, kill: Kill) -> None:
    """Start the countdown at the `kill.number`-th call of a method, in the thread that calls it."""
    original: Callable[..., Any] = getattr(owner, method)
    occasions: set[int] = set()

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Several files belong to one save: its step, the first argument, tells them apart.
        occasions.add(args[0] if kill.occasion == "save" else len(occasions))
        if len(occasions) == kill.number:
            _count_down(kill.calls)
        return original(self, *args, **kwargs)

    setattr(owner, method, wrapped)


def _count_down(calls: int) -> None:
    left = [calls]

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if sys.getprofile() is None:
        sys.setprofile(count)
