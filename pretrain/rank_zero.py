"""Work that one rank does for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from data.errors import InputError

T = TypeVar("T")


def run_on_rank_zero(function: Callable[[], T]) -> T:
    """Call a function on rank 0 alone; every rank returns its result. All ranks call this.

    Raises:
        InputError: Raised by the function; the same, of the same class, on every rank.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = function()
        except InputError as error:
            outcome[1] = (type(error), str(error))
    dist.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        kind, message = outcome[1]
        raise kind(message)
    return outcome[0]
