"""Measures on one GPU all that needs one, best value first, within some minutes.

    python -m benchmarks.gpu out=DIR [minutes=9] [parts=step_7b,attention_flex] [device=cpu]

    out      folder of `gpu.json`; what earlier runs have left in it stays, but for parts that are run again
    minutes  that all parts may take together; default 9
    parts    names of some parts (benchmarks/gpu_parts.py); default all
    device   cuda or cpu; default cuda where there is an NVIDIA device. On a CPU the parts run at their
             smallest sizes, which shows that they run

Each part is a program of its own with a limit of its own: the others go on where it hangs or fails.
`gpu.json` is rewritten whole as the parts write: whenever this is cut off, what was measured is in it, and
the last lines of parts that failed. It ends with a table of the goals (`benchmarks.gpu_goals`).

Exit status: 0 if every part that was begun is done, 1 if none was, if one failed or was ended at its limit,
or if `gpu.json` could not be written, 2 for a mistake of the command line, 128 + N after signal N.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_goals import NOT_MEASURED, Goal, goals
from benchmarks.gpu_parts import ON_CPU, ON_GPU, Part
from benchmarks.gpu_run import DONE, ENDED, FAILED, CutOffError, Outcome, Run
from data.errors import InputError
from data.files import user_mistake
from pretrain.compile_caches import compile_caches

_WORDS = ("out", "minutes", "parts", "device")
_WIDE = 160


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; see the module."""

    out: Path
    seconds: float
    parts: tuple[Part, ...]
    device: str


def parse(words: Sequence[str]) -> Options:
    """Read the words of the command line.

    Raises:
        InputError: A word that is unknown, given twice or has no such value; names it.
    """
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in _WORDS or not equals or not value:
            raise InputError(f"{word}: expected {', '.join(f'{key}=...' for key in _WORDS)}")
        if key in given:
            raise InputError(f"{word}: {key}= is given twice; give it once")
        given[key] = value
    if "out" not in given:
        raise InputError("out= is missing: the folder to write gpu.json to, as in out=results")
    device = given.get("device") or ("cuda" if Path("/dev/nvidia0").exists() else "cpu")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device={device}: expected cpu or cuda")
    parts = {part.name: part for part in (ON_GPU if device == "cuda" else ON_CPU)}
    chosen = given["parts"].split(",") if "parts" in given else list(parts)
    if unknown := [name for name in chosen if name not in parts]:
        raise InputError(f"parts={','.join(unknown)}: expected some of {', '.join(parts)}")
    seconds = 60 * _number(given.get("minutes", "9"))
    return Options(Path(given["out"]).absolute(), seconds, tuple(parts[name] for name in chosen), device)


def _number(minutes: str) -> float:
    try:
        number = float(minutes)
    except ValueError:
        number = 0.0
    if not 0 < number <= 24 * 60:
        raise InputError(f"minutes={minutes}: expected a number of minutes above 0, at most a day")
    return number


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and print the tables; returns the exit status."""
    words = sys.argv[1:] if words is None else words
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    try:
        options = parse(words)
        if options.device == "cuda":
            check_cuda()
        run = Run(options.out / "gpu.json", options.seconds, compile_caches())
        with run.alone():
            return _measure(run, options.parts)
    except (InputError, OSError) as error:
        if (mistake := user_mistake(error)) is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 2


def check_cuda() -> None:
    """Ask torch, in a process of its own, for a GPU: parts would otherwise run on the CPU at full size.

    Raises:
        InputError: It finds none.
    """
    asked = subprocess.run(
        [sys.executable, "-c", "import torch; assert torch.cuda.is_available(), torch.__version__"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if asked.returncode:
        said = [line for line in asked.stderr.splitlines() if line.strip()]
        raise InputError(
            f"device=cuda: torch finds no GPU ({said[-1] if said else 'no message'}); install a CUDA build "
            "of torch that fits the driver, or give device=cpu"
        )


def _measure(run: Run, parts: Sequence[Part]) -> int:
    before = {number: signal.signal(number, _cut_off) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        cut_by = run.measure(parts, _print_outcome)
        return _conclude(run, parts, cut_by)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(run: Run, parts: Sequence[Part], cut_by: int | None) -> int:
    """Write and print the goals; returns the exit status."""
    reached = goals(run.results)
    run.goals = [asdict(goal) | {"met": goal.met, "verdict": goal.verdict} for goal in reached]
    run.write(finished=cut_by is None)
    _print_goals(reached)
    if run.not_written is not None:
        print(f"error: {run.not_written}", file=sys.stderr)
    if cut_by is not None:
        return 128 + cut_by
    states = [run.outcomes[part.name].state for part in parts]
    bad = DONE not in states or any(state in (FAILED, ENDED) for state in states)
    return int(bad or run.not_written is not None)


def _cut_off(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # what is left is quick and has to be finished
    raise CutOffError(number)


def _print_outcome(name: str, outcome: Outcome) -> None:
    reason = f": {outcome.reason}" if outcome.reason else ""
    print(f"{name}: {outcome.state} after {outcome.seconds:.0f} s{reason}", flush=True)


def _print_goals(reached: Sequence[Goal]) -> None:
    table = Table(title="Goals", title_justify="left")
    for title in ("goal", "at least or below", "measured", "", "of"):
        table.add_column(title)
    for goal in reached:
        sign = "<" if goal.lower else ">="
        value = NOT_MEASURED if goal.value is None else f"{goal.value:.2f} {goal.unit}"
        verdict = "" if goal.value is None else goal.verdict
        table.add_row(goal.text, f"{sign} {goal.bound:g} {goal.unit}", value, verdict, goal.how)
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)


if __name__ == "__main__":
    sys.exit(main())
