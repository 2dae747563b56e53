"""World-model rollouts in the report: picture, video and scores by each protocol, beside published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.report.charts import Chart, Series, format_number, line_chart
from eval.report.json_values import Json, integer, mapping, number, read_json, rows
from eval.report.rollout_media import data_url, poster
from eval.report.run_contents import RunContents
from eval.video import VideoPreview, read_preview
from eval.world_model.published_scores import METRICS, RYNNVLA_002, WORLDVLA, comparison, protocol_of
from eval.world_model.score_text import scores_text
from pretrain.run_layout import parse_step_name

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
        scores: Rows of the table; empty where no rollout is ten frames long.
        comparison: How far published scores may be compared.
    """

    protocol: str
    explanation: str
    picture: str
    caption: str
    video: str | None
    poster: str | None
    speed: str
    chart: Chart | None
    scores: Sequence[ScoreRow]
    comparison: str


def world_model_rollouts(run: RunContents) -> list[WorldModelRollout]:
    """The newest world-model rollout of each protocol."""
    return [_rollout(picture) for picture in run.rollouts]


def _rollout(picture: Path) -> WorldModelRollout:
    video, scores = picture.with_suffix(".mp4"), picture.with_suffix(".json")
    results = read_json(scores) if scores.is_file() else {}
    protocol = protocol_of(results)
    preview = read_preview(video) if video.is_file() else None
    return WorldModelRollout(
        protocol=protocol,
        explanation=(
            f"Protocol {protocol}. Top: {_TRUE_FRAMES[protocol]}. Bottom: the prediction; its first frame is "
            "given."
        ),
        picture=data_url(picture, "image/png"),
        caption=_caption(picture, results),
        video=data_url(video, "video/mp4") if video.is_file() else None,
        poster=poster(preview),
        speed=_speed(preview),
        chart=_psnr_chart(rows(results, "frames"), first=0 if protocol == "published" else 1),
        scores=_score_rows(results),
        comparison=comparison(protocol),
    )


def _caption(picture: Path, results: Json) -> str:
    step = parse_step_name(picture.parent.name)
    parts = [] if step is None else [f"Step {step}"]
    if results.get("episode"):
        parts.append(f"episode {results['episode']} ({results.get('split', 'unknown split')})")
    if rows(results, "frames"):
        parts.append(scores_text(results))
    return ", ".join(parts)


def _speed(preview: VideoPreview | None) -> str:
    if preview is None:
        return ""
    return f"{preview.frames_per_second:g} frames a second, one for every time step"


def _score_rows(results: Json) -> list[ScoreRow]:
    """Ours over each number of frames, WorldVLA's over as many; then RynnVLA-002's of the same suites."""
    found: list[ScoreRow] = []
    for horizon in rows(results, "horizons"):
        frames, episodes = integer(horizon, "frames") or 0, integer(horizon, "episodes")
        count = "" if episodes is None else str(episodes)
        baseline = {name: horizon.get(f"no_change_{name}") for name in METRICS}
        found.append(ScoreRow("this checkpoint", str(frames), count, _cells(horizon), published=False))
        found.append(ScoreRow("no change", str(frames), count, _cells(baseline), published=False))
        if frames in WORLDVLA:
            found.append(
                ScoreRow("published: WorldVLA", str(frames), "", _cells(WORLDVLA[frames]), published=True)
            )
    suites = mapping(results, "published_by_suite") if found and protocol_of(results) == "published" else {}
    found += [
        ScoreRow(f"published: RynnVLA-002, {suite}", "", "", _cells(RYNNVLA_002[suite]), published=True)
        for suite in suites
        if suite in RYNNVLA_002
    ]
    return found


def _cells(scores: Mapping[str, object]) -> tuple[str, ...]:
    values = [number(dict(scores), name) for name in METRICS]
    return tuple("-" if value is None else format_number(value) for value in values)


def _psnr_chart(frames: Sequence[Json], first: int) -> Chart | None:
    """PSNR of each scored frame.

    Args:
        frames: Scores.
        first: Number of the first one.
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
    return line_chart("PSNR by predicted frame", "dB", series, x_unit="frame")
