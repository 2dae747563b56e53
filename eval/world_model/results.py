"""Results of world-model rollouts: scores, picture and video on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from data.errors import InputError
from data.files import write_text_whole
from eval.config import WorldModelProtocol
from eval.video import write_gif, write_video
from eval.world_model.pictures import ViewFrames, contact_sheet, shown_frames, video_frames
from eval.world_model.published_scores import RYNNVLA_002
from eval.world_model.view_scores import ViewScores, mean_of_views

_FRAMES_PER_SECOND = 5


@dataclass(frozen=True)
class ImagineResult:
    """World-model rollouts and their files.

    Attributes:
        protocol: How they were scored.
        views: Scores of each camera, in the run's order.
        suites: Task suites of the episodes.
        picture: PNG of the first rollout: true frames above predicted ones and their difference, at 1, 4, 8,
            16, ... steps, the given first frame at the left.
        video: MP4 of the first rollout: true beside predicted.
        gif: The same as GIF; None: not requested.
        scores: JSON of all scores.
        failures: Metric -> why it was requested but could not be computed.
        notes: Caveats: what could not be verified, data that the checkpoint was not trained on.
    """

    protocol: WorldModelProtocol
    views: Mapping[str, ViewScores]
    suites: tuple[str, ...]
    picture: Path
    video: Path
    scores: Path
    gif: Path | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def overall(self) -> ViewScores:
        """Mean of the views' scores."""
        return mean_of_views(list(self.views.values()))

    def first_psnr(self) -> dict[str, dict[int, float]]:
        """PSNR in dB of the first rollout: view -> number of the frame -> value."""
        first = 0 if self.protocol == "published" else 1  # number of the first scored frame
        return {
            view: {number: frame.psnr for number, frame in enumerate(scores.rollouts[0].frames, first)}
            for view, scores in self.views.items()
        }

    def summary(self) -> dict[str, float]:
        """Computed scores by protocol and name: `tokens/psnr`, `tokens/no_change_fvd_50`, ...

        They are the mean of the views; of several, each has its own besides: `tokens/wrist/psnr`, ...
        """
        scores = {f"{self.protocol}/{name}": value for name, value in self.overall.summary().items()}
        if len(self.views) > 1:
            for view, of_view in self.views.items():
                scores |= {f"{self.protocol}/{view}/{name}": v for name, v in of_view.summary().items()}
        return scores

    def to_json(self) -> dict[str, Any]:
        """The scores as `imagine.json` has them: the mean of the views, and of several also each view's."""
        overall = self.overall
        first = overall.rollouts[0]
        views: list[dict[str, Any]] = []
        if len(self.views) > 1:
            views = [{"view": view, **scores.to_json()} for view, scores in self.views.items()]
        return {
            "protocol": self.protocol,
            "cameras": list(self.views),
            "episode": first.episode,
            "split": first.split,
            "instruction": first.instruction,
            "notes": list(self.notes),
            "published_by_suite": {
                suite: {"RynnVLA-002": dict(RYNNVLA_002[suite])}
                for suite in self.suites
                if suite in RYNNVLA_002
            },
            **overall.to_json(),
            "views": views,
        }


def write_result(result: ImagineResult, request: dict[str, Any], views: Mapping[str, ViewFrames]) -> None:
    """Write all scores, then picture and video of the first rollout.

    Args:
        result: Scores and the files to write.
        request: Settings of the rollouts, for the JSON file.
        views: Frames of each view of the first rollout.

    Raises:
        InputError: The folder cannot be written.
    """
    try:
        result.scores.parent.mkdir(parents=True, exist_ok=True)
        shown = shown_frames(len(next(iter(views.values())).truth) - 1)
        content = {**request, **result.to_json(), "picture_frames": shown}
        write_text_whole(result.scores, json.dumps(content, indent=2) + "\n")
        Image.fromarray(contact_sheet(views, result.first_psnr())).save(result.picture)
        frames = video_frames(views)
        write_video(result.video, frames, _FRAMES_PER_SECOND)
        if result.gif is not None:
            write_gif(result.gif, frames, _FRAMES_PER_SECOND)
    except OSError as error:
        raise InputError(
            f"{result.scores.parent}: cannot write the rollout ({error.strerror}); choose another out"
        ) from error
