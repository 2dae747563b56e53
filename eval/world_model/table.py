"""Scores of a world model as a table, with the published scores."""

from __future__ import annotations

from rich.table import Table

from eval.world_model.results import ImagineResult
from eval.world_model.scores import PUBLISHED

_COLUMNS = {
    "fvd": ("FVD", ".1f"),
    "psnr": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
}


def scores_table(result: ImagineResult) -> Table:
    """Scores over the first 10 and 50 frames; the caption says why a metric was not computed."""
    table = Table(title_justify="left", caption_justify="left")
    for title in ("frames", "episodes", *(title for title, _ in _COLUMNS.values())):
        table.add_column(title, justify="right")
    reasons: dict[str, str] = {}
    for horizon in result.horizons:
        cells = [_cell(getattr(horizon, name), form) for name, (_, form) in _COLUMNS.items()]
        table.add_row(str(horizon.frames), str(horizon.episodes), *cells)
        reasons |= {name: f"{_COLUMNS[name][0]}: {reason}" for name, reason in horizon.not_computed.items()}
    for frames, scores in PUBLISHED.items():
        cells = [f"[dim]{_cell(scores[name], form)}" for name, (_, form) in _COLUMNS.items()]
        table.add_row(f"[dim]published {frames}", "", *cells)
    if reasons:
        table.caption = f"not computed: {'; '.join(reasons.values())}"
    return table


def _cell(value: float | None, form: str) -> str:
    return "not computed" if value is None else f"{value:{form}}"
