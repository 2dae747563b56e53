"""LPIPS: the learned perceptual distance between frames, with AlexNet or VGG-16.

The backbone's weights are given by path and never downloaded; without them LPIPS is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import InputError, first_line
from eval.world_model.backbone_errors import failure_reason

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_BATCH = 32  # frames


@dataclass(frozen=True)
class Convolution:
    """One convolution of a backbone, followed by a ReLU.

    Attributes:
        number: Its number in torchvision's `features`.
        channels: Number of its outputs.
        kernel, stride, padding: In pixels of its input.
        pooled: Side in pixels of the max pooling (stride 2) of its input; 0: none.
        compared: Whether its activations are compared.
    """

    number: int
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pooled: int = 0
    compared: bool = True


@dataclass(frozen=True)
class Backbone:
    """A network whose activations LPIPS compares.

    Attributes:
        name: Its name.
        file: Its weights, as torchvision publishes them.
        linear: File of torchmetrics with the weights of the compared activations' channels (version 0.1).
        convolutions: In order.
    """

    name: str
    file: str
    linear: str
    convolutions: tuple[Convolution, ...]


ALEXNET = Backbone(
    "AlexNet",
    "alexnet-owt-7be5be79.pth",
    "alex.pth",
    (
        Convolution(0, 64, kernel=11, stride=4, padding=2),
        Convolution(3, 192, kernel=5, padding=2, pooled=3),
        Convolution(6, 384, pooled=3),
        Convolution(8, 256),
        Convolution(10, 256),
    ),
)
"""Krizhevsky 2014 (arXiv 1404.5997)."""

VGG16 = Backbone(
    "VGG-16",
    "vgg16-397923af.pth",
    "vgg.pth",
    (
        Convolution(0, 64, compared=False),
        Convolution(2, 64),
        Convolution(5, 128, pooled=2, compared=False),
        Convolution(7, 128),
        Convolution(10, 256, pooled=2, compared=False),
        Convolution(12, 256, compared=False),
        Convolution(14, 256),
        Convolution(17, 512, pooled=2, compared=False),
        Convolution(19, 512, compared=False),
        Convolution(21, 512),
        Convolution(24, 512, pooled=2, compared=False),
        Convolution(26, 512, compared=False),
        Convolution(28, 512),
    ),
)
"""Simonyan and Zisserman 2014 (arXiv 1409.1556), configuration D."""


class Lpips(nn.Module):
    """Learned perceptual distance, version 0.1 (Zhang et al. 2018, arXiv 1801.03924).

    Args:
        path: Weights of the backbone as torchvision publishes them, or the same state in safetensors. The
            distance's own five layers come with torchmetrics.
        setting: Name of the setting, for messages.
        backbone: The network.

    Raises:
        InputError: The file cannot be read, or is not the backbone's.
    """

    def __init__(self, path: Path, setting: str = "lpips_weights", backbone: Backbone = ALEXNET) -> None:
        super().__init__()
        self._backbone = backbone
        self.convolutions = nn.ModuleList()
        inputs = 3
        for layer in backbone.convolutions:
            self.convolutions.append(
                nn.Conv2d(inputs, layer.channels, layer.kernel, layer.stride, layer.padding)
            )
            inputs = layer.channels
        state = _read_state(path)
        try:
            for layer, convolution in zip(backbone.convolutions, self.convolutions, strict=True):
                names = {part: f"features.{layer.number}.{part}" for part in ("weight", "bias")}
                convolution.load_state_dict({part: state[name] for part, name in names.items()})
        except (KeyError, RuntimeError) as error:
            reason = first_line(error)
            raise InputError(
                f"{setting}={path}: not torchvision's {backbone.name} ({reason}); give {backbone.file}"
            ) from error
        self._name = f"{setting}={path}"
        self.linear = [layer.flatten() for layer in _linear_layers(backbone)]
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
        """The five activations [N, C, H, W] that are compared, of frames uint8 [N, H, W, 3]."""
        x = frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        shift, scale = (torch.tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x = (x - shift) / scale
        activations = []
        for layer, convolution in zip(self._backbone.convolutions, self.convolutions, strict=True):
            if layer.pooled:
                x = F.max_pool2d(x, layer.pooled, 2)
            x = F.relu(convolution(x))
            if layer.compared:
                activations.append(x)
        return activations


def _unit(x: Tensor) -> Tensor:
    """Channels of each position, scaled to unit length."""
    return x / torch.sqrt(1e-8 + (x**2).sum(dim=1, keepdim=True))


def _linear_layers(backbone: Backbone) -> list[Tensor]:
    """The distance's own weights [1, C, 1, 1], from torchmetrics' package."""
    import torchmetrics.functional.image.lpips as published

    path = Path(published.__file__).parent / "lpips_models" / backbone.linear
    state = torch.load(path, map_location="cpu", weights_only=True)
    compared = sum(layer.compared for layer in backbone.convolutions)
    return [state[f"lin{number}.model.1.weight"] for number in range(compared)]


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
