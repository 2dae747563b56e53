"""Tables of the study in Markdown, for docs/learning.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.comparison import Compared
from benchmarks.learning.results import CellResult
from benchmarks.learning.settings import StudySettings, TaskSettings
from data.errors import InputError
from data.files import write_text_whole

BEGIN, END = "<!-- learning: begin -->", "<!-- learning: end -->"
"""Marks in docs/learning.md; what is between them is replaced."""

_NOT_MEASURED = "not measured yet"
Row = dict[str, Any]


def markdown(
    settings: StudySettings,
    results: Sequence[CellResult],
    compared: Sequence[Compared],
    pictures: Sequence[str],
    hours: Mapping[str, float],
) -> str:
    """The tables of all tasks.

    Args:
        settings: The study.
        results: Of all cells.
        compared: Its comparisons.
        pictures: Addresses of the curves, as seen from the page.
        hours: Task -> time that its parts took.
    """
    parts: list[str] = []
    for task in settings.tasks:
        of_task = [result for result in results if result.cell.task.name == task.name]
        rows = [(result, result.row) for result in of_task]
        parts += [f"### {task.title}", "", _scale(settings, task, rows, hours[task.name]), ""]
        parts += [*_success(rows), "", *_learned(rows), ""]
        parts += [*_order(settings, [each for each in compared if each.task == task.name]), ""]
        drawn = [path for path in pictures if f"learning-{task.name}-" in path]
        parts += [*(f"![{Path(path).stem}]({path})" for path in drawn), *([""] if drawn else [])]
    return "\n".join(parts).strip() + "\n"


def write_between_marks(page: Path, text: str) -> None:
    """Replace what is between the marks of a page; raises as `check_marks`."""
    before, after = check_marks(page)
    write_text_whole(page, f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def check_marks(page: Path) -> tuple[str, str]:
    """What is before and after the marks of a page.

    Raises:
        InputError: The page cannot be read, or lacks the marks.
    """
    try:
        content = page.read_text("utf-8")
    except OSError as error:
        raise InputError(f"{page}: cannot be read ({error.strerror}); publish into the repository") from error
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{page}: expected the lines {BEGIN} and {END} around the tables; add them")
    return before, after


def _scale(
    settings: StudySettings, task: TaskSettings, rows: Sequence[tuple[CellResult, Row]], hours: float
) -> str:
    done = sum(row["trainings"] for _, row in rows)
    tokens = [row["tokens"] for _, row in rows if row["tokens"] and row["equal"] == "tokens"]
    ends = dict.fromkeys(f"{end(tokens) / 1e6:.2f}" for end in (min, max)) if tokens else {}
    amount = f"{' to '.join(ends)} million trained tokens" if ends else ""
    took = f"; all of it took {hours:.1f} hours of one core" if hours else ""
    displaced = f" (displaced={task.displaced:g})" if task.displaced else ""
    trained = f"{done} of {len(rows) * len(settings.seeds)}{f', {amount}' if amount else ''}{took}"
    return (
        f"`{task.suite}`, {task.demonstrations} demonstrations{displaced}, camera {', '.join(task.cameras)} "
        f"at {task.resolution} px, image tokenizer: {task.image_tokenizer}; {task.episodes} episodes for "
        f"each of the seeds {', '.join(map(str, settings.seeds))}. Trainings done: {trained}."
    )


def _success(rows: Sequence[tuple[CellResult, Row]]) -> list[str]:
    def success(row: Row) -> str:
        if row["success"] is None:
            return _NOT_MEASURED
        return f"**{row['success']:.1f}** ({row['low']:.1f} to {row['high']:.1f})"

    columns: dict[str, Callable[[CellResult, Row], str]] = {
        "": lambda result, _: result.cell.variant.title,
        "K": lambda _, row: str(row["chunk"]),
        "success, % (95 %)": lambda _, row: success(row),
        "of 50, by seed": lambda _, row: row["by_seed"] or "-",
        "steps": lambda _, row: _number(row["steps"]),
        "action samples": lambda _, row: _number(row["action_samples"]),
        "world samples": lambda _, row: _number(row["world_samples"]),
        "paper, %": lambda _, row: "-" if row["paper"] is None else f"{row['paper']:.1f}",
    }
    episodes = rows[0][0].cell.task.episodes if rows else 0
    return _table({name.replace("50", str(episodes)): of for name, of in columns.items()}, rows)


def _learned(rows: Sequence[tuple[CellResult, Row]]) -> list[str]:
    return _table(
        {
            "at the end": lambda result, _: result.cell.variant.title,
            "K": lambda _, row: str(row["chunk"]),
            "action loss, held out": lambda _, row: _number(row["loss_action"], 3),
            "tokens guessed, %": lambda _, row: _number(row["accuracy_action"], 1, 100),
            "L1 of the tokens": lambda _, row: _number(row["action_l1"], 4),
            "L1 of the head": lambda _, row: _number(row["action_head_l1"], 4),
            "PSNR, dB": lambda _, row: _number(row["psnr"], 1),
            "of the first frame": lambda _, row: _number(row["no_change_psnr"], 1),
            "minutes": lambda _, row: _number(row["seconds"], 1, 1 / 60),
            "tokens/s": lambda _, row: _number(row["tokens_per_second"]),
        },
        rows,
    )


def _order(settings: StudySettings, compared: Sequence[Compared]) -> list[str]:
    lines = ["| better than | | K | difference, % (95 %) | |", "|---|---|---|---|---|"]
    for each in compared:
        less, more = (settings.variant(name).title for name in (each.less, each.more))
        difference = _NOT_MEASURED
        if each.difference is not None:
            difference = f"{each.difference:+.1f} ({each.low:+.1f} to {each.high:+.1f})"
        verdict = each.verdict if each.verdict != "not measured" else "-"
        claim = f"paper: {verdict}" if each.claimed else verdict
        lines.append(f"| {more} | {less} | {each.chunk} | {difference} | {claim} |")
    return lines


def _table(
    columns: dict[str, Callable[[CellResult, Row], str]], rows: Sequence[tuple[CellResult, Row]]
) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for result, row in rows:
        lines.append(f"| {' | '.join(cell(result, row) for cell in columns.values())} |")
    return lines


def _number(value: float | None, digits: int = 0, times: float = 1.0) -> str:
    return "-" if value is None else f"{value * times:,.{digits}f}"
