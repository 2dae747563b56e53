"""Distances that need a trained backbone: LPIPS between frames, FVD between sets of videos.

The backbones' weights are given by path and never downloaded; without them the metric is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import InputError, first_line

_LPIPS_SHIFT = (-0.030, -0.088, -0.188)
_LPIPS_SCALE = (0.458, 0.448, 0.450)
_CHANNELS = (64, 192, 384, 256, 256)  # of AlexNet's five activations
_CONVOLUTIONS = (0, 3, 6, 8, 10)  # their numbers in torchvision's `features`
_BATCH = 32  # frames
_TRIAL_PIXELS = 64  # of the blank frames that a backbone is tried on

NETWORK_ERRORS = (RuntimeError, torch.jit.Error)
"""What a network raises that cannot compute; TorchScript's errors are no RuntimeErrors."""


class Lpips(nn.Module):
    """Learned perceptual distance with AlexNet, version 0.1 (Zhang et al. 2018, arXiv 1801.03924).

    Args:
        path: Weights of AlexNet as torchvision publishes them (`alexnet-owt-7be5be79.pth`, or the same state
            in safetensors). The distance's own five layers come with torchmetrics.
        setting: Name of the setting, for messages.

    Raises:
        InputError: The file cannot be read, or is not AlexNet's.
    """

    def __init__(self, path: Path, setting: str = "lpips_weights") -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, 64, 11, 4, 2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            ]
        )
        state = _read_state(path)
        try:
            for number, convolution in zip(_CONVOLUTIONS, self.convolutions, strict=True):
                names = {part: f"features.{number}.{part}" for part in ("weight", "bias")}
                convolution.load_state_dict({part: state[name] for part, name in names.items()})
        except (KeyError, RuntimeError) as error:
            reason = first_line(error)
            raise InputError(
                f"{setting}={path}: not torchvision's AlexNet ({reason}); give alexnet-owt-7be5be79.pth"
            ) from error
        self._name = f"{setting}={path}"
        self.linear = [layer.flatten() for layer in _linear_layers()]
        self.eval().requires_grad_(False)

    def check(self, pixels: int) -> None:
        """Try the network on a blank frame of this side, before any rollout is made for it.

        Raises:
            InputError: The frames are too small for it, or its weights are not finite.
        """
        blank = torch.zeros((1, pixels, pixels, 3), dtype=torch.uint8)
        try:
            finite = bool(torch.isfinite(self(blank, 255 - blank)).all())
            problem = "" if finite else "its distances are not finite numbers"
        except RuntimeError as error:
            problem = failure_reason(error)
        if problem:
            raise InputError(
                f"{self._name}: cannot be used on frames of {pixels} px ({problem}); leave it out, "
                "or download the weights again"
            )

    @torch.inference_mode()
    def forward(self, frames: Tensor, others: Tensor) -> Tensor:
        """Distances [N] between frames uint8 [N, H, W, 3]."""
        pairs = zip(frames.split(_BATCH), others.split(_BATCH), strict=True)
        return torch.cat([self._distance(one, other) for one, other in pairs])

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        total = torch.zeros(len(one))
        for a, b, weights in zip(self.activations(one), self.activations(other), self.linear, strict=True):
            difference = (_unit(a) - _unit(b)) ** 2
            total += torch.einsum("nchw,c->nhw", difference, weights).mean(dim=(1, 2))
        return total

    def activations(self, frames: Tensor) -> list[Tensor]:
        """Activations [N, C, H, W] after each convolution, of frames uint8 [N, H, W, 3]."""
        x = frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        shift, scale = (torch.tensor(values)[:, None, None] for values in (_LPIPS_SHIFT, _LPIPS_SCALE))
        x = (x - shift) / scale
        activations = []
        for number, convolution in enumerate(self.convolutions):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(convolution(x))
            activations.append(x)
        return activations


def _unit(x: Tensor) -> Tensor:
    """Channels of each position, scaled to unit length."""
    return x / torch.sqrt(1e-8 + (x**2).sum(dim=1, keepdim=True))


def _linear_layers() -> list[Tensor]:
    """The distance's own weights [1, C, 1, 1], from torchmetrics' package."""
    import torchmetrics.functional.image.lpips as published

    path = Path(published.__file__).parent / "lpips_models" / "alex.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{number}.model.1.weight"] for number in range(len(_CHANNELS))]


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or PyTorch file; other objects in it are never unpickled."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many types, all of them about the file
        reason = first_line(error)
        raise InputError(f"{path}: cannot be read as weights ({reason}); download the file again") from error


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


def failure_reason(error: Exception) -> str:
    """The line of an error that says the cause; TorchScript puts it last, after the code around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    causes = [line for line in lines if line.startswith("RuntimeError: ")]
    return causes[-1] if causes else lines[0]


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Distance between the normal distributions of two sets of features [N, D] (Dowson and Landau 1982).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). The last trace is the sum of the singular values of
    A1 A2^T, where Ci = Ai^T Ai and Ai are the centred features over sqrt(N - 1): no D x D matrix is needed.

    Raises:
        ValueError: Fewer than two features.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError("a distribution needs at least two features")
    a, b = one.double(), other.double()
    roots = [(x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    means = ((a.mean(dim=0) - b.mean(dim=0)) ** 2).sum()
    traces = sum((root**2).sum() for root in roots)
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float(means + traces - 2 * shared)
