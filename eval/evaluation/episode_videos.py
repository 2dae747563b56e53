"""Which episodes are run, with a video or a recording, and what becomes of those that are run again for it.

The first episodes of each task have a video; of finished ones without one, failures come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from eval.evaluation.episode_recordings import EpisodeRecordings
from eval.evaluation.journal import Key
from eval.pool.messages import EpisodeSpec
from eval.rollout.episode import EpisodeResult
from eval.rollout.trace import trace_of


def with_videos(
    specs: Sequence[EpisodeSpec],
    finished: Mapping[Key, EpisodeResult],
    count: int | None,
    folder: Path,
    recordings: EpisodeRecordings | None = None,
) -> list[EpisodeSpec]:
    """The episodes to run, so that `count` of each task have a video in `folder`, and all a recording.

    Those without a result come first. A finished episode is run again only for a video or recording that is
    missing, and not where that has ended otherwise before: it takes the place of a video, so that the same
    evaluation again runs nothing.

    Args:
        specs: All episodes, grouped by task, initial states ascending.
        finished: Results that are not run again for their own sake.
        count: Number of episodes of each task with a video; None: all.
        folder: Of the videos.
        recordings: Of the episodes; None: none are made.

    Raises:
        InputError: A recording is damaged.
    """
    unfinished: list[EpisodeSpec] = []
    repeated: list[EpisodeSpec] = []
    for _, group in groupby(specs, key=lambda spec: spec.task):
        task = list(group)
        chosen = _chosen(task, finished, len(task) if count is None else count, folder)
        for spec in task:
            key = key_of(spec)
            videos = folder if key in chosen else None
            wanted = recordings is not None and (key not in finished or recordings.lacks(finished[key]))
            recording = recordings.place if recordings is not None and wanted else None
            complete = replace(spec, videos=videos, recording=recording)
            if key not in finished:
                unfinished.append(complete)
            elif videos is not None or recording is not None:
                repeated.append(complete)
    return unfinished + repeated


def _chosen(
    task: Sequence[EpisodeSpec], finished: Mapping[Key, EpisodeResult], count: int, folder: Path
) -> set[Key]:
    """Episodes of a task to be recorded: first ones that have not run, failures, then other finished ones."""
    results = {key: finished[key] for spec in task if (key := key_of(spec)) in finished}
    missing = [
        key
        for key, result in results.items()
        if not result.repeated_otherwise and not _has_video(result, folder)
    ]
    candidates = [
        *[key_of(spec) for spec in task[:count] if key_of(spec) not in results],
        *[key for key in missing if not results[key].success],
        *[key for key in missing if results[key].success],
    ]
    return set(candidates[: max(0, count - (len(results) - len(missing)))])


def key_of(spec: EpisodeSpec) -> Key:
    """Task and initial state of an episode."""
    return spec.task, spec.initial_state


def _has_video(result: EpisodeResult, folder: Path) -> bool:
    return result.video is not None and (folder / result.video).is_file()


def recorded_again(
    kept: EpisodeResult, again: EpisodeResult, folder: Path, for_video: bool = True
) -> EpisodeResult:
    """A finished episode with the video or recording of its repetition; its outcome stays whatever that gave.

    The video or recording of a repetition that went another way (another GPU, another renderer) does not show
    the episode: a video is removed, a recording is known by its actions, and the episode is not run again for
    them. A repetition that broke down may be tried again.

    Args:
        kept: The finished episode.
        again: Its repetition.
        folder: Of the videos.
        for_video: Whether it was run again for its video; else for its recording alone.
    """
    if again.error is None and _went_alike(kept, again):
        same = replace(kept, actions_sha256=again.actions_sha256, recording_error=again.recording_error)
        return replace(same, video=again.video, video_error=again.video_error) if for_video else same
    outcome = f"error: {again.error}" if again.error else f"success {again.success} in {again.steps} steps"
    reason = f"run again for its {'video' if for_video else 'recording'} it ended otherwise ({outcome})"
    kept = replace(kept, repeated_otherwise=again.error is None)
    if not for_video:
        return replace(kept, recording_error=reason)
    if again.video is not None:
        (folder / again.video).unlink(missing_ok=True)
        trace_of(folder / again.video).unlink(missing_ok=True)
    return replace(kept, video=None, video_error=reason)


def _went_alike(kept: EpisodeResult, again: EpisodeResult) -> bool:
    """Whether two runs of an episode were the same; an earlier version did not store its actions."""
    same_actions = kept.actions_sha256 in ("", again.actions_sha256)
    return same_actions and (kept.success, kept.steps) == (again.success, again.steps)
