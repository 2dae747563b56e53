"""What a study has measured: JSON, curves, and the tables of docs/learning.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import demo_runs
from benchmarks.learning.cells import Cell
from benchmarks.learning.comparison import Compared, compare
from benchmarks.learning.parts import Part
from benchmarks.learning.pictures import write_pictures
from benchmarks.learning.results import CellResult, core_hours, read_results
from benchmarks.learning.settings import StudySettings
from benchmarks.learning.tables import check_marks, markdown, write_between_marks
from benchmarks.learning.token_budget import TOLERANCE, largest_difference
from benchmarks.report import Column, Report
from data.errors import InputError
from data.files import writable_folder

JSON_FILE = Path("benchmarks/results/learning-cpu.json")
PAGE = Path("docs/learning.md")
PICTURES = Path("docs/pictures")
_COLUMNS = (
    Column("task", "task"),
    Column("variant", "variant"),
    Column("chunk", "K"),
    *demo_runs.SUCCESS_COLUMNS,
    Column("steps", "steps"),
    Column("tokens", "tokens", digits=0),
    Column("action_samples", "action samples"),
    Column("world_samples", "world samples"),
    Column("loss_action", "action loss, held out", "nats a token", digits=3),
    Column("accuracy_action", "accuracy, held out", digits=3),
    Column("action_l1", "L1 of the tokens", "-1 to 1", digits=4),
    Column("action_head_l1", "L1 of the head", "-1 to 1", digits=4),
    Column("psnr", "PSNR", "dB", digits=1),
    Column("no_change_psnr", "of the first frame", "dB", digits=1),
    Column("seconds", "training", "s", digits=0),
    Column("tokens_per_second", "tokens/s", digits=0),
    Column("paper", "WorldVLA's paper", "%", digits=1),
    Column("equal", "equal"),
    Column("trainings", "trainings"),
    Column("padding", "padding", "%", digits=1),
    Column("curves", "curves"),
)
_SHOWN = ("task", "variant", "chunk", "episodes", "success", "low", "high", "by_seed", "steps", "loss_action")
_HIDDEN = tuple(column.key for column in _COLUMNS if column.key not in (*_SHOWN, "psnr", "seconds"))


def publish(settings: StudySettings, cells: Sequence[Cell], parts: Sequence[Part], root: Path) -> list[Path]:
    """Print the table, and write all files below `root`; returns them.

    Args:
        settings: The study.
        cells: Of its grid.
        parts: Of the study; what is done of them is published.
        root: The repository.

    Raises:
        InputError: Nothing is measured, results that cannot be read, docs/learning.md is missing or lacks its
            marks, or a folder cannot be written.
    """
    results = read_results(cells, parts)
    if not any(result.runs for result in results):
        raise InputError("no training of the study is done: nothing to publish; see --list")
    check_marks(root / PAGE)
    for folder in (PAGE.parent, PICTURES, JSON_FILE.parent):  # before the first file, so that they agree
        writable_folder(root / folder, "--root")
    compared = compare(results)
    pictures = write_pictures(results, root / PICTURES)
    addresses = [path.relative_to((root / PAGE).parent).as_posix() for path in pictures]
    hours = {task.name: core_hours(parts, task.name, settings.jobs) for task in settings.tasks}
    write_between_marks(root / PAGE, markdown(settings, results, compared, addresses, hours))
    _report(results, compared).finish(root / JSON_FILE)
    return [root / JSON_FILE, root / PAGE, *pictures]


def _report(results: Sequence[CellResult], compared: Sequence[Compared]) -> Report:
    report = Report("learning", "The grid of WorldVLA's ablations", _COLUMNS, "cpu", _HIDDEN)
    rows = [result.row for result in results]
    for row in rows:
        report.add(**row)
    for task in dict.fromkeys(row["task"] for row in rows):
        tokens = [
            row["tokens"]
            for row in rows
            if row["task"] == task and row["equal"] == "tokens" and row["tokens"]
        ]
        apart = largest_difference(tokens) if tokens else None
        met = None if apart is None else apart <= TOLERANCE
        report.target(f"{task}: all variants train on as many tokens within {TOLERANCE:.0%}", met, apart)
    for each in compared:
        if each.difference is not None:
            claim = f"paper: {each.verdict}" if each.claimed else each.verdict
            interval = f"{each.difference:+.1f} % ({each.low:+.1f} to {each.high:+.1f})"
            report.note(f"{each.task}, K = {each.chunk}: {each.more} above {each.less}: {interval}, {claim}")
    report.note("tokens: of samples, without padding; means over the seeds; curves are in the JSON file")
    report.note("by seed: successes of each seed's episodes; 95 %: Wilson's interval over all seeds")
    return report
