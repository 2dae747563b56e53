"""Videos of a run's episodes, and files as data URLs, so that the report is one file."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from eval.report.evaluation_tables import first_failures, step_text, task_text
from eval.report.evaluations import EvaluationRecord, Key, episode_key, newest_and_earlier
from eval.report.json_values import Json, rows
from eval.report.run_contents import RunContents
from eval.simulator.interface import CONTROL_FREQUENCY
from eval.video import VideoPreview, read_preview

_MAX_VIDEO_BYTES = 24_000_000  # of all videos together; base64 adds a third
MAX_VIDEOS = 48  # of one evaluation
_POSTER_QUALITY = 80


@dataclass(frozen=True)
class Video:
    """A tile of the page.

    Attributes:
        file: The video.
        source: Its content as a data URL.
        poster: Its last frame as a data URL; None where it cannot be decoded.
        frames_per_second: At which it is played; None where it cannot be decoded.
        caption: Suite, task, initial state, step and outcome.
        short_caption: What tells it apart from the others of its evaluation.
        outcome: `success`, `failure` or `error`.
        anchor: Id of the tile on the page.
        evaluation: Whose episode it shows.
    """

    file: Path
    source: str
    poster: str | None
    frames_per_second: float | None
    caption: str
    short_caption: str
    outcome: str
    anchor: str
    evaluation: EvaluationRecord


def videos(run: RunContents) -> tuple[list[Video], int]:
    """Rollout videos within the page's size limit, and the number of omitted ones.

    First come the first failing episodes of each task in each suite's last evaluation, then the other failing
    and the solved ones of these evaluations, then those of earlier steps. Of one evaluation there are at most
    `MAX_VIDEOS`.
    """
    last, earlier = newest_and_earlier(run.evaluations)
    episodes = [(e, key) for e in last for key in _failing(e)]
    episodes += [(e, key) for e in last for key in _others(e)]
    episodes += [(e, key) for e in earlier for key in [*_failing(e), *_others(e)]]
    shown: list[Video] = []
    bytes_left = _MAX_VIDEO_BYTES
    counts: Counter[int] = Counter()
    for evaluation, key in episodes:
        size = evaluation.videos[key].stat().st_size
        if counts[id(evaluation)] < MAX_VIDEOS and size <= bytes_left:
            bytes_left -= size
            counts[id(evaluation)] += 1
            shown.append(_tile(evaluation, key, f"video-{len(shown) + 1}"))
    return shown, len(episodes) - len(shown)


def speed_text(videos: Sequence[Video]) -> str:
    """How fast the videos of episodes are played, in words; empty where none can be decoded."""
    speeds = {video.frames_per_second for video in videos if video.frames_per_second is not None}
    if not speeds:
        return ""
    (first, *others) = sorted(speeds)
    if others:
        return f"At {', '.join(f'{speed:g}' for speed in (first, *others))} frames a second."
    return (
        f"In real time: {first:g} frames a second, one for every {CONTROL_FREQUENCY / first:g} steps of the "
        "simulator."
    )


def _failing(evaluation: EvaluationRecord) -> list[Key]:
    """The first failing episode of each task, where it has a video."""
    keys = [episode_key(row) for row in first_failures(evaluation)]
    return [key for key in keys if key is not None and key in evaluation.videos]


def _others(evaluation: EvaluationRecord) -> list[Key]:
    """The other episodes with a video, failures first."""
    solved = {episode_key(row): bool(row.get("success")) for row in rows(evaluation.results, "per_episode")}
    others = evaluation.videos.keys() - _failing(evaluation)
    return sorted(others, key=lambda key: (solved.get(key, False), key))


def _tile(evaluation: EvaluationRecord, key: Key, anchor: str) -> Video:
    file = evaluation.videos[key]
    row = next(r for r in rows(evaluation.results, "per_episode") if episode_key(r) == key)
    preview = read_preview(file)
    return Video(
        file=file,
        source=data_url(file, "video/mp4"),
        poster=poster(preview),
        frames_per_second=None if preview is None else preview.frames_per_second,
        caption=_video_caption(evaluation, row),
        short_caption=_short_caption(evaluation, row),
        outcome="error" if row.get("error") else "success" if row.get("success") else "failure",
        anchor=anchor,
        evaluation=evaluation,
    )


def poster(preview: VideoPreview | None) -> str | None:
    """The last frame of a video as a data URL."""
    if preview is None:
        return None
    content = io.BytesIO()
    Image.fromarray(preview.last_frame).save(content, "JPEG", quality=_POSTER_QUALITY)
    return _url_of(content.getvalue(), "image/jpeg")


def outcome_text(row: Json) -> str:
    """How an episode ended, in words."""
    if row.get("error"):
        return "simulator error"
    return ("solved in" if row.get("success") else "not solved in") + f" {row.get('steps')} steps"


def _short_caption(evaluation: EvaluationRecord, row: Json) -> str:
    state = f"state {row.get('initial_state')}: {outcome_text(row)}"
    tasks = rows(evaluation.results, "per_task")
    return state if len(tasks) < 2 else f"{task_text(evaluation, row)}, {state}"


def _video_caption(evaluation: EvaluationRecord, row: Json) -> str:
    task = task_text(evaluation, row)
    step = "" if evaluation.step is None else f"step {step_text(evaluation)}, "
    return f"{evaluation.label}, {task}, {step}initial state {row.get('initial_state')}: {outcome_text(row)}"


def data_url(file: Path, kind: str) -> str:
    """A file of this media type as a data URL."""
    return _url_of(file.read_bytes(), kind)


def _url_of(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
