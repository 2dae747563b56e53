"""Every task of LIBERO's suites opened once: its first frame is drawn and 20 steps are run.

Shows which tasks work on this machine. The scripted expert acts where it has a script for the task's goal,
else actions of zero. Tasks are opened one after the other, ten in a process: a simulator takes about 2 GB.
`--sheet FILE` writes the first frames as one picture.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.evaluation_loops import cpu_seconds
from benchmarks.report import Column, Report, arguments
from data.contracts import AGENT_CAMERA
from data.errors import InputError
from eval.contact_sheet import evenly_spaced, label, tile
from eval.expert.scripts import demonstrate
from eval.simulator.interface import SETTLE_ACTION, Simulator
from eval.simulator.libero.names import LIBERO_SUITES
from eval.simulator.registry import SUITES, open_suite

_STEPS = 20
_PIXELS = 256
_SHEET_PIXELS = 128
_IN_A_PROCESS = 10
_MIN_CONTRAST = 10.0  # standard deviation of grey levels: a frame without a scene has less
_COLUMNS = (
    Column("suite", "suite"),
    Column("tasks", "tasks"),
    Column("opened", "opened"),
    Column("by_expert", "run by the expert"),
    Column("darkest", "darkest mean", "grey level", digits=1),
    Column("brightest", "brightest mean", "grey level", digits=1),
    Column("cpu_seconds", "CPU time of a task", "s", digits=1),
    Column("failed", "failed"),
)


@dataclass(frozen=True, slots=True)
class Opened:
    """What became of one task.

    Attributes:
        suite: Of the task.
        number: Of the task.
        name: Of the task.
        seconds: CPU seconds.
        by_expert: Whether the scripted expert acted.
        frame: First frame uint8 [256, 256, 3]; None: there is none.
        error: What went wrong; empty: nothing.
    """

    suite: str
    number: int
    name: str
    seconds: float = 0.0
    by_expert: bool = False
    frame: NDArray[np.uint8] | None = None
    error: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("libero_tasks", __doc__)
    suites = [suite for suite in SUITES if suite.startswith("libero")]
    parser.add_argument(
        "--suites", nargs="+", choices=suites, metavar="SUITE", help="default: LIBERO's five suites"
    )
    parser.add_argument("--sample", type=int, help="tasks of each suite, evenly spaced; default: all")
    parser.add_argument("--sheet", type=Path, help="PNG of all first frames to write")
    options = parser.parse_args(argv)
    names = options.suites or (["libero_object", "libero_goal"] if options.smoke else list(LIBERO_SUITES))
    sample = options.sample or (1 if options.smoke else None)

    title = f"First frame and {_STEPS} steps of LIBERO's tasks"
    report = Report("libero_tasks", title, _COLUMNS, options.device)
    results = _open_all([task for name in names for task in _tasks(name, sample)])
    rows: dict[str, list[Opened]] = {}
    for name in names:
        of_suite = [result for result in results if result.suite == name]
        _add(report, name, of_suite)
        rows |= _sheet_rows(name, of_suite)
    failed = sum(row["failed"] for row in report.rows)
    report.target("every task opens, draws its first frame and runs", not failed, f"{failed} failed")
    if options.sheet is not None:
        _write_sheet(options.sheet, rows)
    report.finish(options.out)
    return 0


def _tasks(suite: str, sample: int | None) -> list[tuple[str, int]]:
    """A suite's tasks, or evenly spaced ones."""
    count = len(open_suite(suite).tasks)
    return [(suite, number) for number in evenly_spaced(count, sample or count).tolist()]


def _open_all(tasks: Sequence[tuple[str, int]]) -> list[Opened]:
    """Open tasks in processes, one after the other."""
    results: list[Opened] = []
    # A process that is forked beside the renderer's threads can hang.
    context = multiprocessing.get_context("spawn")
    for start in range(0, len(tasks), _IN_A_PROCESS):
        part = tasks[start : start + _IN_A_PROCESS]
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            try:
                results += executor.submit(open_tasks, part).result()
            except BrokenProcessPool as error:
                results += [Opened(suite, number, "-", error=str(error)) for suite, number in part]
    return results


def open_tasks(tasks: Sequence[tuple[str, int]]) -> list[Opened]:
    """Open tasks, given by suite and number, one after the other in this process."""
    results = []
    for name, number in tasks:
        suite = open_suite(name)
        before = cpu_seconds()
        frame, by_expert, error = None, False, ""
        try:
            with closing(suite.open(number)) as simulator:
                simulator.reset(0)
                frame = simulator.render(AGENT_CAMERA, _PIXELS)
                by_expert = _run(simulator)
                error = _fault(simulator, frame)
        except Exception as raised:  # the table has it by the task's name
            error = f"{type(raised).__name__}: {raised}"
        task, seconds = suite.tasks[number].name, cpu_seconds() - before
        results.append(Opened(name, number, task, seconds, by_expert, frame, error))
    return results


def _run(simulator: Simulator) -> bool:
    """Run the steps; returns whether the expert acted."""
    actions = _expert(simulator)
    first = next(actions, None)
    for step in range(_STEPS):
        action = first if step == 0 else next(actions, None)
        simulator.step(np.array(SETTLE_ACTION) if action is None else action)
    return first is not None


def _expert(simulator: Simulator) -> Iterator[NDArray[np.float64]]:
    """The expert's actions; none where it has no script for the task's first goal."""
    try:
        yield from demonstrate(simulator)
    except InputError:
        return


def _fault(simulator: Simulator, frame: NDArray[np.uint8]) -> str:
    if not np.isfinite(simulator.sim_state()).all():
        return "a state that is not finite"
    if frame.std() < _MIN_CONTRAST:
        return f"a frame without a scene: its grey levels vary by {frame.std():.1f}"
    return ""


def _add(report: Report, suite: str, results: list[Opened]) -> None:
    """One row of the table, and a note for every task that failed."""
    means = [float(result.frame.mean()) for result in results if result.frame is not None]
    failed = [result for result in results if result.error]
    report.add(
        suite=suite,
        tasks=len(results),
        opened=len(means),
        by_expert=sum(result.by_expert for result in results),
        darkest=min(means, default=None),
        brightest=max(means, default=None),
        cpu_seconds=sum(result.seconds for result in results) / len(results),
        failed=len(failed),
    )
    for result in failed:
        report.note(f"{suite} {result.number} ({result.name}): {result.error}")


def _sheet_rows(suite: str, results: list[Opened]) -> dict[str, list[Opened]]:
    """Rows of the sheet by their labels: the suite and the numbers of its tasks."""
    rows = {}
    for start in range(0, len(results), _IN_A_PROCESS):
        part = results[start : start + _IN_A_PROCESS]
        first, last = part[0].number, part[-1].number
        whole = last - first == len(part) - 1 and first != last
        numbers = f"{first}-{last}" if whole else ",".join(str(result.number) for result in part)
        rows[f"{suite} {numbers}"] = part
    return rows


def _write_sheet(path: Path, rows: dict[str, list[Opened]]) -> None:
    """Write the first frames; a task without one is white."""
    columns = max(len(part) for part in rows.values())
    frames = np.full((len(rows), columns, _SHEET_PIXELS, _SHEET_PIXELS, 3), 255, np.uint8)
    for row, part in enumerate(rows.values()):
        for column, result in enumerate(part):
            if result.frame is not None:
                small = Image.fromarray(result.frame).resize((_SHEET_PIXELS, _SHEET_PIXELS))
                frames[row, column] = np.asarray(small)
    picture = label(tile(frames), [str(number) for number in range(columns)], list(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


if __name__ == "__main__":
    sys.exit(main())
