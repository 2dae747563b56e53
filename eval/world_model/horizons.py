"""Scores over the first 10 and 50 frames of rollouts, as world models are compared in publications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from data.contracts import AGENT_CAMERA
from eval.world_model.backbone_errors import NETWORK_ERRORS, failure_reason
from eval.world_model.fvd import VideoFeatures, frechet_distance
from eval.world_model.protocol import TOKENS, ScoringProtocol
from eval.world_model.published_scores import METRICS, comparison, worldvla_scores
from eval.world_model.scores import NO_CHANGE, FrameScore, Videos, mean_score, summary_of

HORIZONS = (10, 50)  # frames, of the published scores
FAILED = "failed"  # begins the reason of a metric that was requested and could not be computed
_MIN_VIDEOS = 2  # for FVD


@dataclass(frozen=True)
class HorizonScore:
    """Scores over the first frames of every rollout that is long enough; `no_change_*`: of no change.

    Of several views, every score is the mean of theirs.

    Attributes:
        frames: Number of scored frames.
        episodes: Number of rollouts with at least so many.
        psnr, ssim, lpips: Means over these frames; LPIPS None: not computed.
        fvd: Distance between true and predicted videos; None: not computed.
        not_computed: Metric -> reason.
        published: WorldVLA's scores over as many frames of the same view; empty: it has none.
        published_protocol: How far they may be compared.
    """

    frames: int
    episodes: int
    psnr: float
    ssim: float
    lpips: float | None
    fvd: float | None
    no_change_psnr: float
    no_change_ssim: float
    no_change_lpips: float | None
    no_change_fvd: float | None
    not_computed: dict[str, str]
    published: dict[str, float]
    published_protocol: str


class ScoredRollout(NamedTuple):
    """Compared frames of one view of a rollout, and the score of each."""

    videos: Videos
    scores: tuple[FrameScore, ...]


def horizon_scores(
    rollouts: Sequence[ScoredRollout],
    missing: dict[str, str],
    features: VideoFeatures | None,
    protocol: ScoringProtocol = TOKENS,
    view: str = AGENT_CAMERA,
) -> list[HorizonScore]:
    """Scores of one view at each of `HORIZONS` that a rollout reaches.

    Args:
        rollouts: The rollouts.
        missing: Metric -> why it is not computed.
        features: Features for FVD; None: it is not computed.
        protocol: By which they were scored.
        view: Camera of the frames.
    """
    scores = []
    for frames in HORIZONS:
        long = [rollout for rollout in rollouts if len(rollout.scores) >= frames]
        if not long:
            continue
        mean = mean_score([score for rollout in long for score in rollout.scores[:frames]])
        reasons = {metric: missing[metric] for metric in ("lpips", "fvd") if metric in missing}
        fvd, no_change_fvd = None, None
        if features is not None and len(long) < _MIN_VIDEOS:
            reasons["fvd"] = f"{len(long)} video, needs at least {_MIN_VIDEOS}"
        elif features is not None:
            try:
                fvd, no_change_fvd = _fvd(long, frames, features, protocol.freedom)
            except NETWORK_ERRORS as error:  # of a program from elsewhere
                reasons["fvd"] = f"{FAILED}: {failure_reason(error)}"
        scores.append(
            HorizonScore(
                frames=frames,
                episodes=len(long),
                fvd=fvd,
                no_change_fvd=no_change_fvd,
                not_computed=reasons,
                published=dict(worldvla_scores(frames, view)),
                published_protocol=comparison(protocol.name),
                **summary_of(mean),  # pyright: ignore[reportArgumentType]
            )
        )
    return scores


def mean_of_horizons(views: Sequence[HorizonScore]) -> HorizonScore:
    """The mean of several views' scores over the same frames; None where a view has none."""
    values: dict[str, Any] = {}
    for name in (f"{prefix}{metric}" for prefix in ("", NO_CHANGE) for metric in METRICS):
        found = [getattr(view, name) for view in views]
        values[name] = None if None in found else float(np.mean(found))
    reasons = {metric: reason for view in views for metric, reason in view.not_computed.items()}
    return replace(views[0], not_computed=reasons, published={}, **values)


def _fvd(
    rollouts: Sequence[ScoredRollout], frames: int, features: VideoFeatures, freedom: int
) -> tuple[float, float]:
    """FVD of the predicted videos and of unchanged first frames.

    Raises:
        RuntimeError, torch.jit.Error: The network failed, or its features are not finite.
    """
    sets = (
        np.stack([getattr(rollout.videos, name)[:frames] for rollout in rollouts])
        for name in ("truth", "predicted", "unchanged")
    )
    of_true, *others = (features(torch.as_tensor(videos)) for videos in sets)
    if not all(bool(torch.isfinite(values).all()) for values in (of_true, *others)):
        raise RuntimeError("its features are not finite numbers")
    fvd, no_change = (frechet_distance(of_true, values, freedom) for values in others)
    return fvd, no_change
