"""Scores of predicted frames against the true ones, each beside the score of predicting no change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import InputError
from eval.world_model.perceptual import (
    NETWORK_ERRORS,
    Lpips,
    VideoFeatures,
    failure_reason,
    frechet_distance,
)
from eval.world_model.ssim import WINDOW, ssim

HORIZONS = (10, 50)  # frames, of the published scores
NO_CHANGE = "no_change_"  # of the names of the baseline's scores
FAILED = "failed"  # begins the reason of a metric that was requested and could not be computed
_MAX_PSNR = 60.0  # dB: equal frames would score infinity, which JSON cannot hold
_MIN_VIDEOS = 2  # for FVD
_BATCH = 16  # frames

# FVD, PSNR in dB, SSIM and LPIPS of WorldVLA (arXiv 2506.21539), by predicted frames.
PUBLISHED = {
    10: {"fvd": 255.1, "psnr": 29.77, "ssim": 0.9040, "lpips": 0.1194},
    50: {"fvd": 674.1, "psnr": 24.30, "ssim": 0.8355, "lpips": 0.1544},
}
PUBLISHED_PROTOCOL = (
    "published scores follow another protocol and are not comparable: against camera frames (here: those "
    "frames decoded by the image tokenizer), read back from MP4 at 256 px, the given frame counted as "
    "predicted, LPIPS with VGG (here: AlexNet), covariances over N (here: N - 1)"
)


@dataclass(frozen=True)
class FrameScore:
    """Scores of one predicted frame, and of the given first frame in its place: predicting no change.

    Attributes:
        psnr, no_change_psnr: Peak signal-to-noise ratio in dB, at most 60.
        ssim, no_change_ssim: Structural similarity, at most 1 (Wang et al. 2004: Gaussian windows of 11
            pixels, sigma 1.5, only those wholly inside the frame; the mean over the channels).
        code_accuracy, no_change_code_accuracy: Share of image codes equal to the true ones.
        lpips, no_change_lpips: Learned perceptual distance; None: not computed.
    """

    psnr: float
    ssim: float
    code_accuracy: float
    no_change_psnr: float
    no_change_ssim: float
    no_change_code_accuracy: float
    lpips: float | None = None
    no_change_lpips: float | None = None


def score(
    truth: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    true_codes: NDArray[np.integer],
    codes: NDArray[np.integer],
    lpips: Lpips | None = None,
) -> tuple[FrameScore, ...]:
    """Scores of predicted frames 1 .. T of uint8 [T + 1, H, W, 3]; frame 0 was given.

    Args:
        truth: True frames uint8 [T + 1, H, W, 3].
        predicted: Predicted frames uint8 [T + 1, H, W, 3].
        true_codes: Their image codes [T + 1, R, C].
        codes: The predicted image codes [T + 1, R, C].
        lpips: Computes LPIPS; None: it is not computed.
    """
    count = len(truth) - 1
    columns: dict[str, Sequence[float | None]] = {}
    for prefix, frames, tokens in (
        ("", predicted[1:], codes[1:]),
        (NO_CHANGE, np.broadcast_to(truth[0], truth[1:].shape), np.broadcast_to(codes[0], codes[1:].shape)),
    ):
        true, other = torch.as_tensor(truth[1:]), torch.as_tensor(np.array(frames))
        columns[f"{prefix}psnr"] = in_batches(_psnr, true, other).tolist()
        columns[f"{prefix}ssim"] = in_batches(ssim, true, other).tolist()
        columns[f"{prefix}code_accuracy"] = (tokens == true_codes[1:]).mean(axis=(1, 2)).tolist()
        columns[f"{prefix}lpips"] = [None] * count if lpips is None else lpips(other, true).tolist()
    return tuple(
        FrameScore(**{name: values[frame] for name, values in columns.items()})  # pyright: ignore[reportArgumentType]
        for frame in range(count)
    )


def in_batches(metric: Callable[[Tensor, Tensor], Tensor], true: Tensor, other: Tensor) -> Tensor:
    """A metric [N] of frames uint8 [N, H, W, 3], some frames at a time."""
    pairs = zip(true.split(_BATCH), other.split(_BATCH), strict=True)
    return torch.cat([metric(_channels_first(a), _channels_first(b)) for a, b in pairs])


def _channels_first(frames: Tensor) -> Tensor:
    return frames.permute(0, 3, 1, 2).double()


def _psnr(true: Tensor, other: Tensor) -> Tensor:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    values = peak_signal_noise_ratio(other, true, data_range=255.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=_MAX_PSNR)


def check_pixels(pixels: int) -> None:
    """Check that frames are large enough for SSIM.

    Raises:
        InputError: They are smaller than its window.
    """
    if pixels < WINDOW:
        raise InputError(
            f"the image tokenizer's frames have {pixels} px; SSIM needs at least {WINDOW}, the side of "
            "its window: take a checkpoint of another image tokenizer"
        )


def mean_score(scores: Sequence[FrameScore]) -> FrameScore:
    """Mean of each score, over the frames that have it."""
    means: dict[str, float | None] = {}
    for field in fields(FrameScore):
        values = [value for score in scores if (value := getattr(score, field.name)) is not None]
        means[field.name] = float(np.mean(values)) if values else None
    return FrameScore(**means)  # pyright: ignore[reportArgumentType]


def without_lpips(scores: Sequence[FrameScore]) -> tuple[FrameScore, ...]:
    """The same scores as if LPIPS was not computed."""
    return tuple(replace(each, lpips=None, no_change_lpips=None) for each in scores)


def summary_of(scores: FrameScore) -> dict[str, float | None]:
    """The scores that are reported as numbers of a whole, each beside that of predicting no change."""
    values = asdict(scores)
    return {name: values[name] for name in values if not name.endswith("code_accuracy")}


@dataclass(frozen=True)
class HorizonScore:
    """Scores over the first frames of every rollout that is long enough; `no_change_*`: of no change.

    Attributes:
        frames: Number of predicted frames.
        episodes: Number of rollouts with at least so many.
        psnr, ssim, lpips: Means over these frames; LPIPS None: not computed.
        fvd: Distance between true and predicted videos; None: not computed.
        not_computed: Metric -> reason.
        published: WorldVLA's scores over as many frames, measured by another protocol.
        published_protocol: What is other in it.
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
    published_protocol: str = PUBLISHED_PROTOCOL


Rollouts = Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], Sequence[FrameScore]]]
"""True and predicted frames uint8 [T + 1, H, W, 3] and the scores of frames 1 .. T, of each rollout."""


def horizon_scores(
    rollouts: Rollouts, missing: dict[str, str], features: VideoFeatures | None
) -> list[HorizonScore]:
    """Scores at each of `HORIZONS` that a rollout reaches.

    Args:
        rollouts: The rollouts.
        missing: Metric -> why it is not computed.
        features: Features for FVD; None: it is not computed.
    """
    scores = []
    for frames in HORIZONS:
        long = [rollout for rollout in rollouts if len(rollout[2]) >= frames]
        if not long:
            continue
        mean = mean_score([score for _, _, each in long for score in each[:frames]])
        reasons = {metric: missing[metric] for metric in ("lpips", "fvd") if metric in missing}
        fvd, no_change_fvd = None, None
        if features is not None and len(long) < _MIN_VIDEOS:
            reasons["fvd"] = f"{len(long)} video, needs at least {_MIN_VIDEOS}"
        elif features is not None:
            try:
                fvd, no_change_fvd = _fvd(long, frames, features)
            except NETWORK_ERRORS as error:  # of a program from elsewhere
                reasons["fvd"] = f"{FAILED}: {failure_reason(error)}"
        scores.append(
            HorizonScore(
                frames=frames,
                episodes=len(long),
                fvd=fvd,
                no_change_fvd=no_change_fvd,
                not_computed=reasons,
                published=PUBLISHED.get(frames, {}),
                **summary_of(mean),  # pyright: ignore[reportArgumentType]
            )
        )
    return scores


def _fvd(rollouts: Rollouts, frames: int, features: VideoFeatures) -> tuple[float, float]:
    """FVD of the predicted videos and of unchanged first frames.

    Raises:
        RuntimeError, torch.jit.Error: The network failed, or its features are not finite.
    """
    true = np.stack([truth[1 : frames + 1] for truth, _, _ in rollouts])
    predicted = np.stack([other[1 : frames + 1] for _, other, _ in rollouts])
    still = np.stack([np.broadcast_to(truth[0], (frames, *truth.shape[1:])) for truth, _, _ in rollouts])
    of_true, *others = (features(torch.as_tensor(videos)) for videos in (true, predicted, still))
    if not all(bool(torch.isfinite(values).all()) for values in (of_true, *others)):
        raise RuntimeError("its features are not finite numbers")
    fvd, no_change = (frechet_distance(of_true, values) for values in others)
    return fvd, no_change
