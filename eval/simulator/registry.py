"""Suites by name."""

from __future__ import annotations

import difflib

from data.errors import InputError
from eval.simulator.interface import Suite
from eval.simulator.libero_names import LIBERO_SUITES

ROBOSUITE_SUITES = ("robosuite_lift",)
SUITES = (*ROBOSUITE_SUITES, *LIBERO_SUITES)


def open_suite(name: str) -> Suite:
    """The suite called `name`; simulators are imported only when it is opened.

    Raises:
        InputError: No such suite, or its packages or assets are missing.
    """
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"suite {name!r}: expected one of {', '.join(SUITES)}{suggestion}")
    if name in LIBERO_SUITES:
        from eval.simulator.libero_tasks import LiberoSuite

        return LiberoSuite(name)
    from eval.simulator.lift import LiftSuite

    return LiftSuite()


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
