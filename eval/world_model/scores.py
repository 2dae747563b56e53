"""Scores of predicted frames against the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eval.world_model.perceptual import Lpips, VideoFeatures, frechet_distance

HORIZONS = (10, 50)  # frames, of the published scores
_MAX_PSNR = 60.0  # dB: equal frames would score infinity, which JSON cannot hold
_MIN_VIDEOS = 2  # for FVD

# FVD, PSNR in dB, SSIM and LPIPS of WorldVLA (arXiv 2506.21539), by predicted frames.
PUBLISHED = {
    10: {"fvd": 255.1, "psnr": 29.77, "ssim": 0.9040, "lpips": 0.1194},
    50: {"fvd": 674.1, "psnr": 24.30, "ssim": 0.8355, "lpips": 0.1544},
}


@dataclass(frozen=True)
class FrameScore:
    """Scores of one predicted frame.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB.
        ssim: Structural similarity (Wang et al. 2004), at most 1.
        held_psnr: PSNR of the given first frame in its place: the score of predicting no change.
        code_accuracy: Share of image codes equal to the true ones.
        lpips: Learned perceptual distance; None: not computed.
    """

    psnr: float
    ssim: float
    held_psnr: float
    code_accuracy: float
    lpips: float | None = None


def score(
    truth: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    code_accuracy: NDArray[np.floating],
    lpips: Lpips | None = None,
) -> tuple[FrameScore, ...]:
    """Scores of predicted frames 1 .. T of uint8 [T + 1, H, W, 3]; frame 0 was given.

    Args:
        truth: True frames uint8 [T + 1, H, W, 3].
        predicted: Predicted frames uint8 [T + 1, H, W, 3].
        code_accuracy: Share of correct image codes of each frame, [T + 1].
        lpips: Computes LPIPS; None: it is not computed.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    true, other = (torch.as_tensor(frames).permute(0, 3, 1, 2).float() for frames in (truth, predicted))
    first = true[:1].expand_as(true)
    psnr, held_psnr = (
        peak_signal_noise_ratio(frames, true, data_range=255.0, reduction="none", dim=(1, 2, 3))
        for frames in (other, first)
    )
    ssim = structural_similarity_index_measure(other, true, data_range=255.0, reduction="none")
    columns = (torch.as_tensor(values)[1:].tolist() for values in (psnr, ssim, held_psnr, code_accuracy))
    distances: Sequence[float | None] = [None] * (len(truth) - 1)
    if lpips is not None:
        distances = lpips(torch.as_tensor(predicted[1:]), torch.as_tensor(truth[1:])).tolist()
    return tuple(
        FrameScore(min(p, _MAX_PSNR), similarity, min(held, _MAX_PSNR), share, distance)
        for p, similarity, held, share, distance in zip(*columns, distances, strict=True)
    )


def mean_score(scores: Sequence[FrameScore]) -> FrameScore:
    """Mean of each score."""
    distances = [value for value in (score.lpips for score in scores) if value is not None]
    return FrameScore(
        psnr=float(np.mean([score.psnr for score in scores])),
        ssim=float(np.mean([score.ssim for score in scores])),
        held_psnr=float(np.mean([score.held_psnr for score in scores])),
        code_accuracy=float(np.mean([score.code_accuracy for score in scores])),
        lpips=float(np.mean(distances)) if distances else None,
    )


@dataclass(frozen=True)
class HorizonScore:
    """Scores over the first frames of every rollout that is long enough, as published.

    Attributes:
        frames: Number of predicted frames.
        episodes: Number of rollouts with at least so many.
        psnr, ssim, lpips: Means over these frames; LPIPS None: not computed.
        fvd: Distance between true and predicted videos; None: not computed.
        not_computed: Metric -> reason.
        published: WorldVLA's scores over as many frames.
    """

    frames: int
    episodes: int
    psnr: float
    ssim: float
    lpips: float | None
    fvd: float | None
    not_computed: dict[str, str]
    published: dict[str, float]


def horizon_scores(
    rollouts: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], Sequence[FrameScore]]],
    lpips: bool,
    features: VideoFeatures | None,
) -> list[HorizonScore]:
    """Scores at each of `HORIZONS` that a rollout reaches.

    Args:
        rollouts: True and predicted frames uint8 [T + 1, H, W, 3] and the scores of frames 1 .. T.
        lpips: Whether LPIPS was computed.
        features: Features for FVD; None: it is not computed.
    """
    scores = []
    for frames in HORIZONS:
        long = [rollout for rollout in rollouts if len(rollout[2]) >= frames]
        if not long:
            continue
        mean = mean_score([score for _, _, each in long for score in each[:frames]])
        reasons = {} if lpips else {"lpips": "lpips_weights is not set"}
        fvd = None
        if features is None:
            reasons["fvd"] = "fvd_network is not set"
        elif len(long) < _MIN_VIDEOS:
            reasons["fvd"] = f"{len(long)} video, needs at least {_MIN_VIDEOS}"
        else:
            videos = [[rollout[0] for rollout in long], [rollout[1] for rollout in long]]
            true, predicted = (
                features(torch.as_tensor(np.stack([video[1 : frames + 1] for video in part])))
                for part in videos
            )
            fvd = frechet_distance(true, predicted)
        published = PUBLISHED.get(frames, {})
        scores.append(
            HorizonScore(frames, len(long), mean.psnr, mean.ssim, mean.lpips, fvd, reasons, published)
        )
    return scores
