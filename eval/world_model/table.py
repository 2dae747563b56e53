"""Scores of a world model as a table, with those of predicting no change and the published ones."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from eval.world_model.published_scores import RYNNVLA_002, WORLDVLA, comparison
from eval.world_model.results import ImagineResult
from eval.world_model.scores import NO_CHANGE

_COLUMNS = {
    "fvd": ("FVD", ".1f"),
    "psnr": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
}


def scores_table(result: ImagineResult) -> Table:
    """Scores over the first 10 and 50 frames; the caption says what the rows are and what is missing."""
    table = Table(title=f"protocol {result.protocol}", title_justify="left", caption_justify="left")
    for title in ("frames", "episodes", *(title for title, _ in _COLUMNS.values())):
        table.add_column(title, justify="right")
    reasons: dict[str, str] = {}
    for horizon in result.horizons:
        episodes = str(horizon.episodes)
        for prefix, label in (("", ""), (NO_CHANGE, "no change ")):
            cells = [_cell(getattr(horizon, f"{prefix}{name}"), form) for name, (_, form) in _COLUMNS.items()]
            table.add_row(f"{label}{horizon.frames}", episodes, *cells)
        reasons |= {name: f"{_COLUMNS[name][0]}: {reason}" for name, reason in horizon.not_computed.items()}
    published = {f"WorldVLA {frames}": scores for frames, scores in WORLDVLA.items()}
    if result.protocol == "published":
        suites = [suite for suite in result.suites if suite in RYNNVLA_002]
        published |= {f"RynnVLA-002 {suite}": RYNNVLA_002[suite] for suite in suites}
    for label, scores in published.items():
        cells = [f"[dim]{_cell(scores[name], form)}" for name, (_, form) in _COLUMNS.items()]
        table.add_row(f"[dim]published: {label} *", "", *cells)
    lines = [
        "no change: the given first frame in place of every prediction",
        f"* {comparison(result.protocol)}",
    ]
    if reasons:
        lines.append(f"not computed: {'; '.join(reasons.values())}")
    lines += result.notes
    table.caption = escape("\n".join(lines))
    return table


def _cell(value: float | None, form: str) -> str:
    return "not computed" if value is None else f"{value:{form}}"
