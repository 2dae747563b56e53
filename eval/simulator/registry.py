"""Suites by name."""

from __future__ import annotations

import difflib

from data.errors import InputError
from eval.simulator.interface import Suite
from eval.simulator.libero.names import LIBERO_SUITES, PLUS_SUITES, PRO_SUITES, UNAVAILABLE

LIFT_SUITES = ("robosuite_lift", "robosuite_lift_camera", "robosuite_lift_noise")
STACK_SUITES = ("robosuite_stack", "robosuite_stack_narrow")
ROBOSUITE_SUITES = (*LIFT_SUITES, *STACK_SUITES)
SUITES = (*ROBOSUITE_SUITES, *LIBERO_SUITES, *PRO_SUITES, *PLUS_SUITES)


def open_suite(name: str) -> Suite:
    """The suite called `name`; simulators are imported only when it is opened.

    Raises:
        InputError: No such suite, or its packages or assets are missing.
    """
    check_suite_name(name)
    if name in LIBERO_SUITES:
        from eval.simulator.libero.suite import LiberoSuite

        return LiberoSuite(name)
    if name in PRO_SUITES:
        from eval.simulator.libero.pro import LiberoProSuite

        return LiberoProSuite(name)
    if name in PLUS_SUITES:
        from eval.simulator.libero.plus import LiberoPlusSuite

        return LiberoPlusSuite(name)
    if name in STACK_SUITES:
        from eval.simulator.stack import StackSuite

        return StackSuite(name)
    from eval.simulator.lift import LiftSuite

    return LiftSuite(name)


def check_suite_name(name: str, setting: str = "suite") -> None:
    """Check that there is a suite of this name, without its packages and assets.

    Args:
        name: The name.
        setting: Name of the setting that says it, for the message.

    Raises:
        InputError: There is none, or it is a published one that cannot be evaluated.
    """
    if name in UNAVAILABLE:
        raise InputError(
            f"{setting}={name} cannot be evaluated: {UNAVAILABLE[name]}; "
            f"there are {', '.join(_related(name))}"
        )
    if name not in SUITES:
        near = difflib.get_close_matches(name.lower(), (*SUITES, *UNAVAILABLE), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {_families()};"
        raise InputError(f"{setting}={name}: no such suite; {hint} docs/libero.md lists all")


def _families() -> str:
    """All suites in words: robosuite's by task, LIBERO-Pro's many by what they perturb."""
    tasks = [name for name in ROBOSUITE_SUITES if name.count("_") == 1]
    variants = [name.removeprefix("robosuite_") for name in ROBOSUITE_SUITES if name not in tasks]
    pro = [name for name in PRO_SUITES if name.count("_") == 2]
    plus, *changed = PLUS_SUITES
    return (
        f"{', '.join(tasks)} (also {', '.join(variants)}), {', '.join((*LIBERO_SUITES, *pro))} (these also "
        f"with a perturbation at the end, as {pro[0]}_task), {plus} (also "
        f"{', '.join(name.removeprefix(plus) for name in changed)})"
    )


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
