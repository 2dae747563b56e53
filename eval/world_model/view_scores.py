"""Scores of the rollouts of one view, and their mean over several views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.world_model.horizons import HorizonScore, mean_of_horizons
from eval.world_model.published_scores import METRICS
from eval.world_model.scores import NO_CHANGE, FrameScore, mean_score, summary_of


@dataclass(frozen=True)
class Rollout:
    """Scores of one rolled-out episode.

    Attributes:
        episode: Key of the episode.
        split: Its split; an episode of `train` says little about unseen ones. All are `train` where the
            checkpoint was trained with `data.split=all`.
        instruction: The task in words.
        mean: Mean score of the scored frames.
        frames: Score of each of them: of the predicted ones, by the published protocol the given one first.
    """

    episode: str
    split: str
    instruction: str
    mean: FrameScore
    frames: tuple[FrameScore, ...]


@dataclass(frozen=True)
class ViewScores:
    """Scores of the rollouts of one view, or their mean over all views.

    Attributes:
        rollouts: One for each episode.
        horizons: Scores over the first 10 and 50 frames, where rollouts are that long.
    """

    rollouts: tuple[Rollout, ...]
    horizons: tuple[HorizonScore, ...]

    @property
    def mean(self) -> FrameScore:
        """Means over all scored frames."""
        return mean_score([frame for rollout in self.rollouts for frame in rollout.frames])

    @property
    def frames(self) -> tuple[FrameScore, ...]:
        """Mean score of each scored frame, over the rollouts that are long enough."""
        longest = max(len(rollout.frames) for rollout in self.rollouts)
        return tuple(
            mean_score([rollout.frames[i] for rollout in self.rollouts if i < len(rollout.frames)])
            for i in range(longest)
        )

    def summary(self) -> dict[str, float]:
        """Computed scores by name: `psnr`, `no_change_fvd_50`, ..."""
        scores: dict[str, float | None] = summary_of(self.mean)
        for horizon in self.horizons:
            for name in METRICS:
                for key in (name, f"{NO_CHANGE}{name}"):
                    scores[f"{key}_{horizon.frames}"] = getattr(horizon, key)
        return {name: value for name, value in scores.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The scores as `imagine.json` has them."""
        return {
            **summary_of(self.mean),
            "horizons": [asdict(horizon) for horizon in self.horizons],
            "frames": [asdict(frame) for frame in self.frames],
            "rollouts": [asdict(rollout) for rollout in self.rollouts],
        }


def mean_of_views(views: Sequence[ViewScores]) -> ViewScores:
    """The mean of the scores of several views of the same rollouts."""
    if len(views) == 1:
        return views[0]
    return ViewScores(
        tuple(map(_mean_of_rollouts, zip(*(view.rollouts for view in views), strict=True))),
        tuple(map(mean_of_horizons, zip(*(view.horizons for view in views), strict=True))),
    )


def _mean_of_rollouts(views: Sequence[Rollout]) -> Rollout:
    frames = tuple(map(mean_score, zip(*(view.frames for view in views), strict=True)))
    first = views[0]
    return Rollout(first.episode, first.split, first.instruction, mean_score(frames), frames)
