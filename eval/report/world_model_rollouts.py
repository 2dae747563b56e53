"""World-model rollouts in the report: picture, video and scores by each protocol, beside published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.contracts import AGENT_CAMERA
from eval.config import WorldModelProtocol
from eval.report.charts import Chart, Series, format_number, line_chart
from eval.report.json_values import Json, integer, mapping, number, read_json, rows
from eval.report.rollout_media import data_url, poster
from eval.report.run_contents import RunContents
from eval.video import VideoPreview, read_preview
from eval.world_model.published_scores import (
    METRICS,
    RYNNVLA_002,
    comparison,
    protocol_of,
    worldvla_scores,
)
from eval.world_model.score_text import MEAN_OF_VIEWS, scores_text, views_of
from pretrain.run_layout import TRAINED_SUFFIX, parse_step_name

_TRUE_FRAMES = {
    "tokens": "the true frames, as decoded by the image tokenizer",
    "published": "the camera's frames",
}


@dataclass(frozen=True)
class ScoreRow:
    """Scores over the first frames of rollouts, of predicting no change, or published ones.

    Attributes:
        of: What the scores are of.
        frames, episodes: Numbers, as text.
        cells: FVD, PSNR, SSIM, LPIPS.
        published: Whether they are published ones.
    """

    of: str
    frames: str
    episodes: str
    cells: tuple[str, ...]
    published: bool


@dataclass(frozen=True)
class WorldModelRollout:
    """The newest world-model rollout that was scored by one protocol.

    Attributes:
        explanation: What the picture shows.
        charts: PSNR by frame, one chart for each view.
        scores: Rows of the table; empty where no rollout is ten frames long.
        comparison: How far published scores may be compared; empty: there are none.
    """

    protocol: str
    explanation: str
    picture: str
    caption: str
    video: str | None
    poster: str | None
    speed: str
    charts: Sequence[Chart]
    scores: Sequence[ScoreRow]
    comparison: str


def world_model_rollouts(run: RunContents) -> list[WorldModelRollout]:
    """The newest world-model rollout of each protocol, and that of trained weights beside an average's."""
    return [_rollout(picture) for picture in run.rollouts]


def _rollout(picture: Path) -> WorldModelRollout:
    video, file = picture.with_suffix(".mp4"), picture.with_suffix(".json")
    where = f"{picture.parent.name} {picture.stem}"
    results = read_json(file) if file.is_file() else {}
    protocol = protocol_of(results)
    preview = read_preview(video) if video.is_file() else None
    views = views_of(results)
    first = 0 if protocol == "published" else 1
    charts = [
        _psnr_chart(rows(of_view, "frames"), first, f", {view}" if len(views) > 1 else "", where)
        for view, of_view in views.items()
    ]
    scores = _score_rows(results)
    return WorldModelRollout(
        protocol=protocol,
        explanation=_explanation(protocol, list(views), "picture_frames" in results),
        picture=data_url(picture, "image/png"),
        caption=_caption(picture, results),
        video=data_url(video, "video/mp4") if video.is_file() else None,
        poster=poster(preview),
        speed=_speed(preview),
        charts=[chart for chart in charts if chart is not None],
        scores=scores,
        comparison=comparison(protocol) if any(row.published for row in scores) else "",
    )


def _explanation(protocol: WorldModelProtocol, views: Sequence[str], has_error: bool) -> str:
    """What the rows of the picture are; pictures of earlier versions have no row of the error."""
    error = " Below it the error (black: half of the range or more) with its PSNR." if has_error else ""
    if len(views) > 1:
        rows_of = "In each three rows" if has_error else "In each pair of rows"
        return (
            f"Protocol {protocol}, views {', '.join(views)}. {rows_of}, above: "
            f"{_TRUE_FRAMES[protocol]}; below: the prediction, whose first frame is given.{error}"
        )
    view = f", view {views[0]}" if views[0] else ""
    return (
        f"Protocol {protocol}{view}. Top: {_TRUE_FRAMES[protocol]}. {'Then' if has_error else 'Bottom'}: the "
        f"prediction; its first frame is given.{error}"
    )


def _caption(picture: Path, results: Json) -> str:
    step = parse_step_name(picture.parent.name.removesuffix(TRAINED_SUFFIX))
    parts = [] if step is None else [f"Step {step}"]
    if results.get("episode"):
        parts.append(f"episode {results['episode']} ({results.get('split', 'unknown split')})")
    if picture.parent.name.endswith(TRAINED_SUFFIX):
        parts.append("trained weights")
    elif str(results.get("weights", "")).startswith("averaged"):
        parts.append("averaged weights")
    if rows(results, "frames"):
        parts.append(scores_text(results))
    return ", ".join(parts)


def _speed(preview: VideoPreview | None) -> str:
    if preview is None:
        return ""
    return f"{preview.frames_per_second:g} frames a second, one for every time step"


def _score_rows(results: Json) -> list[ScoreRow]:
    """Ours of each view over each number of frames, WorldVLA's over as many, then RynnVLA-002's by suite.

    Several views are followed by their mean.
    """
    views = views_of(results)
    several = len(views) > 1
    found = [
        row
        for view, scores in views.items()
        for row in _horizon_rows(scores, view or AGENT_CAMERA, f", {view}" if several else "")
    ]
    if several:
        found += _horizon_rows(results, "", f", {MEAN_OF_VIEWS}")
    suites = mapping(results, "published_by_suite") if found and protocol_of(results) == "published" else {}
    found += [
        ScoreRow(f"published: RynnVLA-002, {suite}", "", "", _cells(RYNNVLA_002[suite]), published=True)
        for suite in suites
        if suite in RYNNVLA_002
    ]
    return found


def _horizon_rows(scores: Json, view: str, suffix: str) -> list[ScoreRow]:
    """Rows of one view over each number of frames; `suffix` names it."""
    found: list[ScoreRow] = []
    for horizon in rows(scores, "horizons"):
        frames, episodes = integer(horizon, "frames") or 0, integer(horizon, "episodes")
        count = "" if episodes is None else str(episodes)
        baseline = {name: horizon.get(f"no_change_{name}") for name in METRICS}
        found.append(
            ScoreRow(f"this checkpoint{suffix}", str(frames), count, _cells(horizon), published=False)
        )
        found.append(ScoreRow(f"no change{suffix}", str(frames), count, _cells(baseline), published=False))
        if published := worldvla_scores(frames, view):
            found.append(ScoreRow("published: WorldVLA", str(frames), "", _cells(published), published=True))
    return found


def _cells(scores: Mapping[str, object]) -> tuple[str, ...]:
    values = [number(dict(scores), name) for name in METRICS]
    return tuple("-" if value is None else format_number(value) for value in values)


def _psnr_chart(frames: Sequence[Json], first: int, suffix: str, where: str) -> Chart | None:
    """PSNR of each scored frame.

    Args:
        frames: Scores.
        first: Number of the first one.
        suffix: Of the title; names the view.
        where: Which rollout, for the chart's ids on the page.
    """
    # Files of earlier versions have another name.
    baseline = "held_psnr" if any("held_psnr" in frame for frame in frames) else "no_change_psnr"
    series = [
        Series(
            label,
            [(float(i), v) for i, frame in enumerate(frames, first) if (v := number(frame, key)) is not None],
            tone,
            dots=True,
        )
        for key, label, tone in (("psnr", "prediction", 1), (baseline, "no change", 3))
    ]
    return line_chart(f"PSNR by predicted frame{suffix}", "dB", series, x_unit="frame", where=where)
