"""Scores of a world model as a table, with those of predicting no change and the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from data.contracts import AGENT_CAMERA
from eval.world_model.horizons import HORIZONS, HorizonScore
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

    Of several views, each has a section, and so has their mean. Shorter rollouts have no row, which the
    caption says.
    """
    views = {view: scores.horizons for view, scores in result.views.items()}
    title = f"protocol {result.protocol}, view{'s' if len(views) > 1 else ''} {' and '.join(views)}"
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in ("frames", "episodes", *(column for column, _ in _COLUMNS.values())):
        table.add_column(column, justify="right")
    sections = {**views, MEAN_OF_VIEWS: result.overall.horizons} if len(views) > 1 else views
    for view, horizons in sections.items():
        if len(sections) > 1 and (horizons or view == AGENT_CAMERA):  # else there is no row below the name
            table.add_section()
            table.add_row(f"[bold]{view}")
        _add_horizons(table, horizons)
        if view == AGENT_CAMERA:
            _add_published(table, {f"WorldVLA {frames}": scores for frames, scores in WORLDVLA.items()})
    suites = [suite for suite in result.suites if suite in RYNNVLA_002] * (result.protocol == "published")
    table.add_section()
    _add_published(table, {f"RynnVLA-002 {suite}": RYNNVLA_002[suite] for suite in suites})
    reasons = {
        name: f"{_COLUMNS[name][0]}: {reason}"
        for horizons in views.values()
        for horizon in horizons
        for name, reason in horizon.not_computed.items()
    }
    lines = (
        ["no change: the given first frame in place of every prediction"]
        if any(views.values())
        else [f"rollouts shorter than {HORIZONS[0]} frames have no row: set frames={HORIZONS[0]} or more"]
    )
    if suites or AGENT_CAMERA in views:
        lines.append(f"* {comparison(result.protocol)}")
    if reasons:
        lines.append(f"not computed: {'; '.join(reasons.values())}")
    lines += result.notes
    table.caption = escape("\n".join(lines))
    return table


def _add_horizons(table: Table, horizons: Sequence[HorizonScore]) -> None:
    for horizon in horizons:
        for prefix, label in (("", ""), (NO_CHANGE, "no change ")):
            cells = [_cell(getattr(horizon, f"{prefix}{name}"), form) for name, (_, form) in _COLUMNS.items()]
            table.add_row(f"{label}{horizon.frames}", str(horizon.episodes), *cells)


def _add_published(table: Table, published: Mapping[str, Scores]) -> None:
    for label, scores in published.items():
        cells = [f"[dim]{_cell(scores[name], form)}" for name, (_, form) in _COLUMNS.items()]
        table.add_row(f"[dim]published: {label} *", "", *cells)


def _cell(value: float | None, form: str) -> str:
    return "not computed" if value is None else f"{value:{form}}"
