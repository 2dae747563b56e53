"""Measurements in processes of their own, so that none inherits another's memory, threads or environment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

START_METHOD = "spawn"  # tests set `fork`, which saves the imports but cannot be used with CUDA

T = TypeVar("T")


def run_in_processes(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
    """Call a function once in each of `len(calls)` new processes, at the same time.

    Args:
        function: Of a module, so that it can be pickled.
        calls: Its arguments in each process.

    Returns:
        The results in the order of `calls`; an exception of a call is raised here.
    """
    context = multiprocessing.get_context(START_METHOD)
    with ProcessPoolExecutor(len(calls), mp_context=context) as executor:
        return list(executor.map(function, *zip(*calls, strict=True)))
