"""The table at the end of the demo: what was learned, and which files to open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.json_record import read_json_object
from eval.world_model.score_text import scores_text
from pretrain.run_folder import RunFolder
from pretrain.run_layout import IMAGINE_STEM, RESULTS_FILE, files_by_step
from pretrain.telemetry.sinks import read_metrics

_AVERAGED_STEPS = 10  # logged steps at either end: single steps are noisy


def print_summary(console: Console, folder: RunFolder, page: Path, tokenizer: str) -> None:
    """Print the table, the run folder and the page to open.

    Args:
        console: Where to print.
        folder: Of the run.
        page: The report.
        tokenizer: Quality of the image tokenizer, as text.
    """
    table = Table(title="What was learned", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in [*summary_rows(folder), ("image tokenizer", tokenizer)]:
        table.add_row(name, value)
    console.print()
    console.print(table)
    console.print(f"run folder  {folder.path}")
    console.print(f"open        {page.resolve()}")


def summary_rows(folder: RunFolder) -> list[tuple[str, str]]:
    """Rows of the table, from the run folder alone; without what was not measured."""
    steps = [record for record in read_metrics(folder.metrics) if "event" not in record]
    summary = folder.read_summary()
    rows = [
        (f"loss of {kind}s", f"{_first_and_last(steps, f'loss_{kind}')} nats a token")
        for kind in ("action", "image")
        if _values(steps, f"loss_{kind}")
    ]
    rows += [
        (f"{kind} tokens predicted right", f"{_first_and_last(steps, f'accuracy_{kind}', percent=True)}")
        for kind in ("action", "image")
        if _values(steps, f"accuracy_{kind}")
    ]
    if _values(steps, "action_head_l1"):
        error = _first_and_last(steps, "action_head_l1")
        rows.append(("error of the action head", f"{error} of a range from -1 to 1"))
    if speed := summary.get("tokens_per_second"):
        rows.append(("speed of training", f"{speed:,.0f} tokens/s"))
    rows += [_evaluation_row(path) for path in files_by_step(folder.evaluations, RESULTS_FILE).values()]
    return rows + _imagined_rows(folder)


def _values(steps: list[dict[str, Any]], key: str) -> list[float]:
    return [record[key] for record in steps if record.get(key) is not None]


def _first_and_last(steps: list[dict[str, Any]], key: str, percent: bool = False) -> str:
    """Mean over the first and over the last logged steps, as text."""
    values = _values(steps, key)
    count = min(_AVERAGED_STEPS, len(values))
    first, last = sum(values[:count]) / count, sum(values[-count:]) / count
    return f"{first:.0%} -> {last:.0%}" if percent else f"{first:.2f} -> {last:.2f}"


def _evaluation_row(path: Path) -> tuple[str, str]:
    results = read_json_object(path, "remove it, and repeat the command")
    low, high = results["wilson_95"]
    text = f"{results['successes']} of {results['episodes']} episodes, {results['errors']} errors"
    name = f"success on {results['suite']} after step {results['step']}"
    return name, f"{text} (95 %: {100 * low:.0f}-{100 * high:.0f} %)"


def _imagined_rows(folder: RunFolder) -> list[tuple[str, str]]:
    paths = list(files_by_step(folder.evaluations, f"{IMAGINE_STEM}.json").values())
    if not paths:
        return []
    scores = read_json_object(paths[-1], "remove it, and repeat the command")
    return [("imagined frames", scores_text(scores))]
