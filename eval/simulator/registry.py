"""Suites by name."""

from __future__ import annotations

import difflib

from data.errors import InputError
from eval.simulator.interface import Suite
from eval.simulator.libero.names import LIBERO_SUITES, PLUS_SUITES, PRO_SUITES, UNAVAILABLE

ROBOSUITE_SUITES = ("robosuite_lift",)
SUITES = (*ROBOSUITE_SUITES, *LIBERO_SUITES, *PRO_SUITES, *PLUS_SUITES)


def open_suite(name: str) -> Suite:
    """The suite called `name`; simulators are imported only when it is opened.

    Raises:
        InputError: No such suite, or its packages or assets are missing.
    """
    if name in UNAVAILABLE:
        raise InputError(
            f"suite {name!r} cannot be evaluated: {UNAVAILABLE[name]}; there are {', '.join(_related(name))}"
        )
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"suite {name!r}: expected one of {', '.join(SUITES)}{suggestion}")
    if name in LIBERO_SUITES:
        from eval.simulator.libero.suite import LiberoSuite

        return LiberoSuite(name)
    if name in PRO_SUITES:
        from eval.simulator.libero.pro import LiberoProSuite

        return LiberoProSuite(name)
    if name in PLUS_SUITES:
        from eval.simulator.libero.plus import LiberoPlusSuite

        return LiberoPlusSuite(name)
    from eval.simulator.lift import LiftSuite

    return LiftSuite()


def _related(name: str) -> list[str]:
    """Suites whose names differ from a name in the perturbation only."""
    stem = name.rpartition("_")[0]
    return [suite for suite in SUITES if suite.startswith(stem)]


def select_tasks(suite: Suite, tasks: list[int] | None) -> list[int]:
    """The requested task numbers, ascending; all where None.

    Raises:
        InputError: A number that the suite does not have, or an empty list.
    """
    if tasks is None:
        return [task.number for task in suite.tasks]
    if not tasks:
        raise InputError(f"suite {suite.name}: tasks=[] selects nothing; leave it out to take all tasks")
    unknown = [task for task in tasks if not 0 <= task < len(suite.tasks)]
    if unknown:
        last = len(suite.tasks) - 1
        available = f"tasks 0 to {last}" if last else "task 0 alone"
        raise InputError(f"suite {suite.name}: task {unknown[0]} does not exist; it has {available}")
    return sorted(set(tasks))
