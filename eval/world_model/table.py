"""Scores of a world model as a table, with those of predicting no change and the published ones."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from data.contracts import AGENT_CAMERA
from eval.world_model.published_scores import RYNNVLA_002, WORLDVLA, Scores, comparison
from eval.world_model.results import ImagineResult
from eval.world_model.score_text import MEAN_OF_VIEWS
from eval.world_model.scores import NO_CHANGE

_COLUMNS = {
    "fvd": ("FVD", ".1f"),
    "psnr": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
}


def scores_table(result: ImagineResult) -> Table:
    """Scores over the first 10 and 50 frames; the caption says what the rows are and what is missing.

    Several views have rows of their own, before those of their mean.
    """
    table = Table(title=_title(result), title_justify="left", caption_justify="left")
    several = len(result.views) > 1
    views = {view: scores.horizons for view, scores in result.views.items()}
    if several:
        views |= {MEAN_OF_VIEWS: result.overall.horizons}
    for title in ("frames", *["view"] * several, "episodes", *(title for title, _ in _COLUMNS.values())):
        table.add_column(title, justify="right")
    reasons: dict[str, str] = {}
    for view, horizon in ((view, horizon) for view, horizons in views.items() for horizon in horizons):
        about = [view] * several + [str(horizon.episodes)]
        for prefix, label in (("", ""), (NO_CHANGE, "no change ")):
            cells = [_cell(getattr(horizon, f"{prefix}{name}"), form) for name, (_, form) in _COLUMNS.items()]
            table.add_row(f"{label}{horizon.frames}", *about, *cells)
        reasons |= {name: f"{_COLUMNS[name][0]}: {reason}" for name, reason in horizon.not_computed.items()}
    for label, view, scores in _published(result):
        cells = [f"[dim]{_cell(scores[name], form)}" for name, (_, form) in _COLUMNS.items()]
        table.add_row(f"[dim]published: {label} *", *[f"[dim]{view}"] * several, "", *cells)
    lines = [
        "no change: the given first frame in place of every prediction",
        f"* {comparison(result.protocol)}",
    ]
    if reasons:
        lines.append(f"not computed: {'; '.join(reasons.values())}")
    lines += result.notes
    table.caption = escape("\n".join(lines))
    return table


def _title(result: ImagineResult) -> str:
    views = list(result.views)
    return f"protocol {result.protocol}, view{'s' if len(views) > 1 else ''} {' and '.join(views)}"


def _published(result: ImagineResult) -> list[tuple[str, str, Scores]]:
    """Label, view and scores of published models."""
    rows: list[tuple[str, str, Scores]] = []
    if AGENT_CAMERA in result.views:
        rows += [(f"WorldVLA {frames}", AGENT_CAMERA, scores) for frames, scores in WORLDVLA.items()]
    if result.protocol == "published":
        suites = [suite for suite in result.suites if suite in RYNNVLA_002]
        rows += [(f"RynnVLA-002 {suite}", "not known", RYNNVLA_002[suite]) for suite in suites]
    return rows


def _cell(value: float | None, form: str) -> str:
    return "not computed" if value is None else f"{value:{form}}"
