"""Curves of a study as SVG files, drawn as those of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks.learning.results import CellResult
from data.files import write_text_whole
from eval.report.charts import Chart, Series, line_chart
from eval.report.drawing import to_svg

_WIDTH = 480
_HEAD, _LEGEND_ROW = 24, 18  # heights of the title and of a row of the legend
_STYLE = """<style>
svg{font-family:system-ui,"Segoe UI","Helvetica Neue",Arial,sans-serif;font-size:12px;background:var(--card)}
:root{--card:#fff;--ink:#1e2126;--soft:#676c75;--rule:#e4e1da;--tone1:#2b6cb0;--tone2:#c2592f;--tone3:#2f7d5b;
--tone4:#7a5ba6;--tone5:#9a7b1c;--tone6:#b0447f}
@media (prefers-color-scheme:dark){:root{--card:#1c1f23;--ink:#e8e6e1;--soft:#9aa0a8;--rule:#2e3238;
--tone1:#6ea8e0;--tone2:#e58c62;--tone3:#6fbf98;--tone4:#b397dd;--tone5:#d9b84f;--tone6:#e58bbb}}
</style>"""
_TONES = 6
_STEP_ASIDE = 0.012  # of the tokens at the end, between the intervals of two variants
_CHARTS = (
    ("success", "success", "Success", "% of the episodes, 95 % interval"),
    ("val_ind/loss_action", "action-loss", "Action loss, held-out demonstrations", "nats a token"),
    ("val_ind/accuracy_action", "action-accuracy", "Action tokens guessed, held out", "share"),
    ("psnr", "psnr", "World model", "PSNR in dB"),
)


def write_pictures(results: Sequence[CellResult], folder: Path) -> list[Path]:
    """Write the curves of each task and K that has any; returns the files.

    `learning-<task>-k<K>-<curve>.svg`: means over the seeds against the tokens trained.
    """
    written: list[Path] = []
    cells = {
        (each.cell.task.name, chunk): each.cell.task.title
        for each in results
        for chunk in each.cell.settings.chunks
    }
    for (task, chunk), title in cells.items():
        compared = [each for each in results if each.cell.task.name == task and each.belongs_to(chunk)]
        for key, name, what, unit in _CHARTS:
            chart = _chart(compared, key, f"{title}, K = {chunk}: {what}", unit)
            if chart is not None:
                path = folder / f"learning-{task}-k{chunk}-{name}.svg"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text_whole(path, whole_file(chart))
                written.append(path)
    return written


def whole_file(chart: Chart) -> str:
    """A chart as an SVG file of its own, with its title and legend, for light and dark pages."""
    drawing = str(to_svg(chart))
    height = float(drawing.split('viewBox="', 1)[1].split('"', 1)[0].split()[3])
    top = _HEAD + _LEGEND_ROW * len(chart.series)
    rows = "".join(
        f'<rect x="14" y="{_HEAD + _LEGEND_ROW * row + 5}" width="14" height="3" '
        f'style="fill:var(--tone{series.tone})"/><text x="36" y="{_HEAD + _LEGEND_ROW * row + 11}" '
        f'style="fill:var(--soft)">{escape(series.label)} {escape(series.last)}</text>'
        for row, series in enumerate(chart.series)
    )
    title = f'<text x="14" y="16" style="fill:var(--ink);font-weight:600">{escape(chart.title)}</text>'
    right = f'x="{_WIDTH - 14}" y="16" text-anchor="end"'
    unit = f'<text {right} style="fill:var(--soft)">{escape(chart.unit)}</text>'
    inner = drawing.replace("<svg ", f'<svg y="{top}" width="{_WIDTH}" height="{height:g}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {_WIDTH} {top + height:g}" width="{_WIDTH}" height="{top + height:g}">'
        f"{_STYLE}{title}{unit}{rows}{inner}</svg>\n"
    )


def _chart(results: Sequence[CellResult], key: str, title: str, unit: str) -> Chart | None:
    series: list[Series] = []
    for number, result in enumerate(results):
        curves = result.curves()
        points = [(x, y) for x, y in curves.get(key, [])]
        ends = (curves.get(f"{key}_{end}", []) for end in ("low", "high"))
        intervals = [(low, high) for (_, low), (_, high) in zip(*ends, strict=True)]
        if intervals:  # of variants side by side: they all have one at the same number of tokens
            shift = _STEP_ASIDE * (number - (len(results) - 1) / 2) * points[-1][0]
            points = [(x + shift, y) for x, y in points]
        series.append(
            Series(result.cell.variant.title, points, number % _TONES + 1, dots=True, intervals=intervals)
        )
    if key == "psnr":
        known = [each.curves()["no_change_psnr"] for each in results if "no_change_psnr" in each.curves()]
        if known:
            points = [(x, y) for x, y in known[0]]
            series.append(Series("the first frame, unchanged", points, len(series) % _TONES + 1))
    return line_chart(title, unit, series, x_unit="tokens trained")
