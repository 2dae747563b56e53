"""The study of what a training learns: collect, prepare, train, evaluate, publish.

    python -m benchmarks.learning --work DIR                       all that is not done
    python -m benchmarks.learning --work DIR --list                all parts, and the time left
    python -m benchmarks.learning --work DIR task=lift seed=0      some of them, with what they need
    python -m benchmarks.learning --work DIR --again eval variant=chunk,single
    python -m benchmarks.learning --work DIR --publish             JSON, curves and tables of what is done

Words select parts: stages (collect, vq, prepare, train, eval, imagine), and task=, variant=, chunk=, seed=,
checkpoint= with one or several values. A part that is done is not repeated, unless --again is said. One whose
settings (of its command, defaults included) have changed since, or which was made from a result that was
repeated since, is refused. Interrupted, the study ends its processes, trainings with a checkpoint, and the
same command goes on.

Exit status: 0, 1 if a part failed, 2 for a mistake, 128 + N after signal N.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning.cells import cells
from benchmarks.learning.grid import all_parts
from benchmarks.learning.parts import Part
from benchmarks.learning.publish import publish
from benchmarks.learning.runner import ROOT, Runner
from benchmarks.learning.selection import seconds_left, select, with_needs
from benchmarks.learning.settings import DEFAULT_FILE, read_settings
from data.errors import InputError
from data.files import user_mistake, writable_folder
from data.locks import LockHeldError, exclusive_lock

_LOCK = "study.lock"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of everything that the study makes")
    parser.add_argument("--settings", type=Path, default=DEFAULT_FILE, help="default: %(default)s")
    parser.add_argument("--list", action="store_true", help="list the parts and the time left; run nothing")
    parser.add_argument("--again", action="store_true", help="remove what the named parts have made, first")
    parser.add_argument("--publish", action="store_true", help="write what was measured; run nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to publish into: %(default)s")
    parser.add_argument("parts", nargs="*", metavar="PART", help="stages and key=value; default: all parts")
    options = parser.parse_intermixed_args(argv)
    try:
        return _run(options)
    except (InputError, OSError) as error:
        print(f"error: {user_mistake(error) or _refused_by_system(error)}", file=sys.stderr)
        return 2


def _refused_by_system(error: Exception) -> str:
    """One line for what a folder's rights, or a file of another kind in the place of one, refuse."""
    place, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
    return f"{place}: {reason}; let this user write there" if place and reason else str(error)


def _run(options: argparse.Namespace) -> int:
    settings = read_settings(options.settings)
    work = _work_folder(options)
    grid = list(cells(settings, work))
    parts = all_parts(settings, work, grid)
    selected = select(parts, options.parts)
    wanted = with_needs(parts, selected)
    if options.list:
        _list(wanted, settings.jobs)
        return 0
    if options.publish:
        if options.settings.resolve() != DEFAULT_FILE.resolve() and options.root.resolve() == ROOT:
            raise InputError(
                f"{options.settings}: --publish of another study needs --root, a folder with docs/"
            )
        for path in publish(settings, grid, parts, options.root.resolve()):
            _show(str(path))
        return 0
    if options.again and not options.parts:
        raise InputError(
            "--again without a part would remove the whole study; name parts, or remove the folder"
        )
    try:
        with exclusive_lock(work / _LOCK):
            return _make(wanted, selected if options.again else [], settings.jobs)
    except LockHeldError as error:
        raise InputError(f"{work}: another study runs in this folder{error.holder}; wait for it") from error


def _work_folder(options: argparse.Namespace) -> Path:
    """The working folder, made where something is to be run in it."""
    work = options.work.resolve()
    if not options.list and not options.publish:
        return writable_folder(work, "--work")
    if not work.is_dir():
        raise InputError(f"--work {work}: no such folder; expected that of a study")
    return work


def _make(wanted: Sequence[Part], again: Sequence[Part], jobs: int) -> int:
    """Run the parts that are not done, and those to be repeated."""
    repeated = {part.name for part in again}
    for part in wanted:
        if part.name not in repeated and part.state() == "changed":
            raise part.changed_error()
    for part in again:
        if part.folder.is_symlink():
            raise InputError(f"{part.folder}: is a link, expected a folder; remove it")
        part.check_settings(repeated)
    for part in again:
        if part.folder.exists():
            shutil.rmtree(part.folder)
    to_do = [part for part in wanted if part.state() != "done"]
    _show(f"{len(wanted) - len(to_do)} of {len(wanted)} parts are done{_time_left(wanted, jobs)}")
    runner = Runner(jobs, _show)
    number = runner.run(to_do)
    if number is not None:
        return 128 + number
    _show(f"{len(to_do) - len(runner.failed)} parts done, {len(runner.failed)} failed")
    return 1 if runner.failed else 0


def _list(parts: Sequence[Part], jobs: int) -> None:
    for part in parts:
        marker = part.read_marker()
        seconds = f"{marker['seconds']:8.0f} s" if marker else " " * 10
        _show(f"{part.state():8}{seconds}  {part.name}")
    done = sum(part.state() == "done" for part in parts)
    _show(f"{done} of {len(parts)} parts are done{_time_left(parts, jobs)}")


def _time_left(parts: Sequence[Part], jobs: int) -> str:
    seconds, unknown = seconds_left(parts, jobs)
    hours = f", about {seconds / 3600:.1f} h are left" if seconds else ""
    return f"{hours}; {unknown} parts of stages that have not been timed yet" if unknown else hours


def _show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
