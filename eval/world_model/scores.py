"""Scores of predicted frames against the true ones, each beside the score of predicting no change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import InputError
from eval.world_model.lpips import Lpips
from eval.world_model.protocol import TOKENS, ScoringProtocol
from eval.world_model.ssim import WINDOW, ssim

NO_CHANGE = "no_change_"  # of the names of the baseline's scores
_BATCH = 16  # frames


@dataclass(frozen=True)
class FrameScore:
    """Scores of one frame, and of the given first frame in its place: predicting no change.

    Attributes:
        psnr, no_change_psnr: Peak signal-to-noise ratio in dB, at most the protocol's limit.
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


class Videos(NamedTuple):
    """The frames that are compared, uint8 [N, H, W, 3] each.

    Attributes:
        truth: True frames.
        predicted: Predicted frames.
        unchanged: The given first frame in place of every prediction.
    """

    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    unchanged: NDArray[np.uint8]

    @classmethod
    def of_rollout(cls, truth: NDArray[np.uint8], predicted: NDArray[np.uint8], first: int = 1) -> Videos:
        """Frames from number `first` on of a rollout uint8 [T + 1, H, W, 3], whose frame 0 was given."""
        unchanged = np.broadcast_to(predicted[0], predicted[first:].shape)
        return cls(truth[first:], predicted[first:], unchanged)


def score(
    videos: Videos,
    true_codes: NDArray[np.integer],
    codes: NDArray[np.integer],
    lpips: Lpips | None = None,
    protocol: ScoringProtocol = TOKENS,
) -> tuple[FrameScore, ...]:
    """Scores of every frame of `videos`.

    Args:
        videos: Frames from number `protocol.first` on.
        true_codes: Image codes [T + 1, R, C] of all true frames.
        codes: Those of all predicted frames, the first of which was given.
        lpips: Computes LPIPS; None: it is not computed.
        protocol: How frames are compared.
    """
    expected, tokens = true_codes[protocol.first :], codes[protocol.first :]
    true = torch.as_tensor(videos.truth)
    columns: dict[str, Sequence[float | None]] = {}
    for prefix, frames, found in (
        ("", videos.predicted, tokens),
        (NO_CHANGE, videos.unchanged, np.broadcast_to(codes[0], tokens.shape)),
    ):
        other = torch.as_tensor(np.array(frames))
        columns[f"{prefix}psnr"] = in_batches(partial(_psnr, protocol), true, other).tolist()
        columns[f"{prefix}ssim"] = in_batches(ssim, true, other).tolist()
        columns[f"{prefix}code_accuracy"] = (found == expected).mean(axis=(1, 2)).tolist()
        columns[f"{prefix}lpips"] = [None] * len(true) if lpips is None else lpips(other, true).tolist()
    return tuple(
        FrameScore(**{name: values[frame] for name, values in columns.items()})  # pyright: ignore[reportArgumentType]
        for frame in range(len(true))
    )


def in_batches(metric: Callable[[Tensor, Tensor], Tensor], true: Tensor, other: Tensor) -> Tensor:
    """A metric [N] of frames uint8 [N, H, W, 3], some frames at a time."""
    pairs = zip(true.split(_BATCH), other.split(_BATCH), strict=True)
    return torch.cat([metric(_channels_first(a), _channels_first(b)) for a, b in pairs])


def _channels_first(frames: Tensor) -> Tensor:
    return frames.permute(0, 3, 1, 2).double()


def _psnr(protocol: ScoringProtocol, true: Tensor, other: Tensor) -> Tensor:
    error = ((true - other) / 255.0).square().mean(dim=(1, 2, 3)) + protocol.psnr_epsilon
    return (-10.0 * error.log10()).clamp(max=protocol.psnr_limit)


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
