"""Pictures and videos of a run as data URLs, so that the report is one file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.report.charts import Chart, Series, format_number, line_chart
from eval.report.run_contents import EvaluationRecord, Json, RunContents, number, read_json, rows
from eval.world_model.score_text import scores_text
from pretrain.run_layout import IMAGINE_STEM, RunLayout, files_by_step

_MAX_VIDEO_BYTES = 24_000_000  # of all videos together; base64 adds a third
_MAX_VIDEOS = 12


@dataclass(frozen=True)
class Video:
    """A video as a data URL."""

    source: str
    caption: str


@dataclass(frozen=True)
class WorldModelRollout:
    """The newest world-model rollout."""

    picture: str
    caption: str
    video: str | None
    chart: Chart | None


def videos(run: RunContents) -> tuple[list[Video], int]:
    """Rollout videos within the page's size limit, and the number of omitted ones.

    The newest step is first; within a step the first failing episode of each task.
    """
    files = [
        (evaluation, file)
        for evaluation in reversed(run.evaluations)
        for file in _failures_first(evaluation, sorted(evaluation.folder.glob("*.mp4")))
        if file.name in _video_names(evaluation)
    ]
    shown: list[Video] = []
    bytes_left = _MAX_VIDEO_BYTES
    for evaluation, file in files:
        size = file.stat().st_size
        if len(shown) < _MAX_VIDEOS and size <= bytes_left:
            bytes_left -= size
            shown.append(Video(_data_url(file, "video/mp4"), _video_caption(evaluation, file)))
    return shown, len(files) - len(shown)


def world_model_rollout(run: RunContents) -> WorldModelRollout | None:
    """The world-model rollout of the newest step that has one."""
    pictures = list(files_by_step(RunLayout(run.path).evaluations, f"{IMAGINE_STEM}.png").values())
    if not pictures:
        return None
    picture = pictures[-1]
    video, scores = picture.with_suffix(".mp4"), picture.with_suffix(".json")
    results = read_json(scores) if scores.is_file() else {}
    frames = rows(results, "frames")
    caption = [f"Step {picture.parent.name.removeprefix('step_').lstrip('0') or '0'}"]
    if results.get("episode"):
        caption.append(f"episode {results['episode']} ({results.get('split', 'unknown split')})")
    if frames:
        caption.append(scores_text(results))
    for horizon in rows(results, "horizons"):
        scores = [
            f"{key.upper()} {format_number(value)}{_no_change(horizon, key)}"
            for key in ("fvd", "psnr", "ssim", "lpips")
            if (value := number(horizon, key)) is not None
        ]
        caption.append(f"over the first {number(horizon, 'frames') or 0:.0f} frames {', '.join(scores)}")
    return WorldModelRollout(
        picture=_data_url(picture, "image/png"),
        caption=", ".join(caption),
        video=_data_url(video, "video/mp4") if video.is_file() else None,
        chart=line_chart(
            "PSNR by predicted frame",
            "dB",
            [
                _per_frame(frames, "psnr", "prediction", 1),
                _per_frame(frames, _baseline_key(frames), "no change", 3),
            ],
            x_unit="frame",
        ),
    )


def _no_change(scores: Json, key: str) -> str:
    """The score of predicting no change, in parentheses; empty where it was not computed."""
    value = number(scores, f"no_change_{key}")
    return "" if value is None else f" (no change: {format_number(value)})"


def _baseline_key(frames: Sequence[Json]) -> str:
    """Name of the PSNR of predicting no change; files of earlier versions have another."""
    return "held_psnr" if any("held_psnr" in frame for frame in frames) else "no_change_psnr"


def _per_frame(frames: Sequence[Json], key: str, label: str, tone: int) -> Series:
    points = [
        (float(i), v) for i, frame in enumerate(frames, start=1) if (v := number(frame, key)) is not None
    ]
    return Series(label, points, tone, dots=True)


def _failures_first(evaluation: EvaluationRecord, files: Sequence[Path]) -> list[Path]:
    """Sort videos: the first failing episode of each task first."""
    first: dict[object, object] = {}
    for row in rows(evaluation.results, "per_episode"):
        if not row.get("success") and row.get("video"):
            first.setdefault(row.get("task"), row.get("video"))
    failing = set(first.values())
    return sorted(files, key=lambda file: (file.name not in failing, file.name))


def _video_names(evaluation: EvaluationRecord) -> set[object]:
    """Videos named in the results; the folder may contain others of an earlier evaluation."""
    return {row.get("video") for row in rows(evaluation.results, "per_episode")}


def _video_caption(evaluation: EvaluationRecord, file: Path) -> str:
    row = next(r for r in rows(evaluation.results, "per_episode") if r.get("video") == file.name)
    if row.get("error"):
        outcome = "simulator error"
    else:
        outcome = ("solved in" if row.get("success") else "not solved in") + f" {row.get('steps')} steps"
    return f"Step {evaluation.step}, task {row.get('task')}, state {row.get('initial_state')}: {outcome}"


def _data_url(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
