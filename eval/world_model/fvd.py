"""FVD: the distance between the features of true and of predicted videos.

The network's file is given by path and never downloaded; without it FVD is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.errors import InputError
from eval.world_model.backbone_errors import NETWORK_ERRORS, failure_reason

_TRIAL_PIXELS = 64  # of the blank frames that the network is tried on


class VideoFeatures:
    """Features of whole videos; FVD is the distance between their distributions.

    Args:
        path: The I3D network (Carreira and Zisserman 2017, arXiv 1705.07750) as the TorchScript file that
            evaluations of video generators share (`i3d_torchscript.pt`): called with videos [B, 3, T, H, W]
            in 0 .. 255 and `rescale`, `resize`, `return_features`. A TorchScript file is a program of tensor
            operations; give only one whose origin you trust.
        setting: Name of the setting, for messages.

    Raises:
        InputError: No such file, or not TorchScript.
    """

    def __init__(self, path: Path, setting: str = "fvd_network") -> None:
        self._name = f"{setting}={path}"
        if not path.is_file():
            raise InputError(f"{self._name}: no such file; give i3d_torchscript.pt, or leave it out")
        try:
            self._network = torch.jit.load(path, map_location="cpu").eval()
        except RuntimeError as error:
            raise InputError(
                f"{self._name}: not a TorchScript file ({failure_reason(error)}); give i3d_torchscript.pt"
            ) from error

    def check(self, lengths: Sequence[int]) -> None:
        """Try the network on blank videos of these numbers of frames, before any rollout is made for it.

        Raises:
            InputError: It cannot be called as I3D is, its clips must be longer, or it gives no features.
        """
        for frames in lengths:
            try:
                features = self(torch.zeros((1, frames, _TRIAL_PIXELS, _TRIAL_PIXELS, 3), dtype=torch.uint8))
                problem = _problem_of_features(features)
            except (*NETWORK_ERRORS, TypeError, ValueError) as error:  # of a program from elsewhere
                problem = failure_reason(error)
            if problem:
                raise InputError(
                    f"{self._name}: cannot be used on {frames} frames, as FVD needs it "
                    f"({problem}); give i3d_torchscript.pt, called with rescale, resize, return_features, "
                    "or leave it out"
                )

    @torch.inference_mode()
    def __call__(self, videos: Tensor) -> Tensor:
        """Features [N, D] of videos uint8 [N, T, H, W, 3].

        Raises:
            RuntimeError, torch.jit.Error: The network cannot compute them.
        """
        features = []
        for video in videos.split(1):
            x = video.permute(0, 4, 1, 2, 3).float()
            features.append(self._network(x, rescale=True, resize=True, return_features=True))
        return torch.cat(features)


def _problem_of_features(features: Tensor) -> str:
    """What is wrong with the features of one video; empty: nothing."""
    if features.ndim != 2 or len(features) != 1:
        return f"its features have shape {list(features.shape)}, expected [1, D]"
    return "" if bool(torch.isfinite(features).all()) else "its features are not finite numbers"


def frechet_distance(one: Tensor, other: Tensor, freedom: int = 1) -> float:
    """Distance between the normal distributions of two sets of features [N, D] (Dowson and Landau 1982).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). The last trace is the sum of the singular values of
    A1 A2^T, where Ci = Ai^T Ai and Ai are the centred features over sqrt(N - freedom): no D x D matrix is
    needed.

    Args:
        one: Features [N, D] of one set.
        other: Features [M, D] of the other.
        freedom: Subtracted from N in the covariances: 1 (unbiased), or 0.

    Raises:
        ValueError: Fewer than two features.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError("a distribution needs at least two features")
    a, b = one.double(), other.double()
    roots = [(x - x.mean(dim=0)) / (len(x) - freedom) ** 0.5 for x in (a, b)]
    means = ((a.mean(dim=0) - b.mean(dim=0)) ** 2).sum()
    traces = sum((root**2).sum() for root in roots)
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float(means + traces - 2 * shared)
