"""Pictures and videos of a run as data URLs, so that the report is one file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.report.charts import Chart, Series, format_number, line_chart
from eval.report.run_contents import Evaluation, Json, RunFolder, number, read_json, rows

_VIDEO_BYTES = 24_000_000  # of all videos together; base64 adds a third
_MOST_VIDEOS = 12
_IMAGINE = "imagine"  # stem of the world-model files in an evaluation folder


@dataclass(frozen=True)
class Video:
    """A video as a data URL."""

    source: str
    caption: str


@dataclass(frozen=True)
class Imagined:
    """The newest world-model rollout."""

    picture: str
    caption: str
    video: str | None
    chart: Chart | None


def videos(run: RunFolder) -> tuple[list[Video], int]:
    """Rollout videos, as many as a page can carry, and how many were left out.

    The newest step comes first, and of a step the first failing episode of each task.
    """
    files = [
        (evaluation, file)
        for evaluation in reversed(run.evaluations)
        for file in _ordered(evaluation, sorted(evaluation.folder.glob("*.mp4")))
        if file.name in _videos_of(evaluation)
    ]
    shown: list[Video] = []
    room = _VIDEO_BYTES
    for evaluation, file in files:
        size = file.stat().st_size
        if len(shown) < _MOST_VIDEOS and size <= room:
            room -= size
            shown.append(Video(_data_url(file, "video/mp4"), _video_caption(evaluation, file)))
    return shown, len(files) - len(shown)


def imagined(run: RunFolder) -> Imagined | None:
    """The world-model rollout of the newest step that has one."""
    pictures = sorted(run.path.glob(f"eval/step_*/{_IMAGINE}.png"))
    if not pictures:
        return None
    picture = pictures[-1]
    video, scores = picture.with_suffix(".mp4"), picture.with_suffix(".json")
    results = read_json(scores) if scores.is_file() else {}
    frames = rows(results, "frames")
    caption = [f"Step {picture.parent.name.removeprefix('step_').lstrip('0') or '0'}"]
    if results.get("episode"):
        caption.append(f"episode {results['episode']} ({results.get('split', 'unknown split')})")
    for key, unit in (("psnr", " dB"), ("ssim", "")):
        if (value := number(results, key)) is not None:
            caption.append(f"{key.upper()} {format_number(value)}{unit} over {len(frames)} frames")
    for horizon in rows(results, "horizons"):
        found = [
            f"{key.upper()} {format_number(value)}"
            for key in ("fvd", "psnr", "ssim", "lpips")
            if (value := number(horizon, key)) is not None
        ]
        caption.append(f"over the first {number(horizon, 'frames') or 0:.0f} frames {', '.join(found)}")
    return Imagined(
        picture=_data_url(picture, "image/png"),
        caption=", ".join(caption),
        video=_data_url(video, "video/mp4") if video.is_file() else None,
        chart=line_chart(
            "PSNR by predicted frame",
            "dB",
            [
                _per_frame(frames, "psnr", "prediction", 1),
                _per_frame(frames, "held_psnr", "first frame, unchanged", 3),
            ],
            x_unit="frame",
        ),
    )


def _per_frame(frames: Sequence[Json], key: str, label: str, tone: int) -> Series:
    points = [
        (float(i), v) for i, frame in enumerate(frames, start=1) if (v := number(frame, key)) is not None
    ]
    return Series(label, points, tone, dots=True)


def _ordered(evaluation: Evaluation, files: Sequence[Path]) -> list[Path]:
    """First failures first."""
    first: dict[object, object] = {}
    for row in rows(evaluation.results, "per_episode"):
        if not row.get("success") and row.get("video"):
            first.setdefault(row.get("task"), row.get("video"))
    failing = set(first.values())
    return sorted(files, key=lambda file: (file.name not in failing, file.name))


def _videos_of(evaluation: Evaluation) -> set[object]:
    """Videos that the results name; an earlier evaluation may have left others in the folder."""
    return {row.get("video") for row in rows(evaluation.results, "per_episode")}


def _video_caption(evaluation: Evaluation, file: Path) -> str:
    row = next(r for r in rows(evaluation.results, "per_episode") if r.get("video") == file.name)
    if row.get("error"):
        outcome = "simulator error"
    else:
        outcome = ("solved in" if row.get("success") else "not solved in") + f" {row.get('steps')} steps"
    return f"Step {evaluation.step}, task {row.get('task')}, state {row.get('initial_state')}: {outcome}"


def _data_url(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
