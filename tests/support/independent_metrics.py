"""Image and video metrics written from their definitions in numpy and scipy, and fixed inputs for them.

Nothing is shared with the metrics of the product: no torch, no torchmetrics. Inputs are made by arithmetic,
so that their numbers are the same everywhere; docs/evaluation.md has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Layer(NamedTuple):
    """A convolution: its number in torchvision, its sizes, the pooling before it (side; 0: none)."""

    number: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    pooled: int
    compared: bool


ALEXNET = (
    Layer(0, 3, 64, 11, 4, 2, 0, True), Layer(3, 64, 192, 5, 1, 2, 3, True),
    Layer(6, 192, 384, 3, 1, 1, 3, True), Layer(8, 384, 256, 3, 1, 1, 0, True),
    Layer(10, 256, 256, 3, 1, 1, 0, True),
)  # fmt: skip


def _vgg16() -> tuple[Layer, ...]:
    """Configuration D of Simonyan and Zisserman: five stages of 3 x 3 convolutions, poolings between them."""
    layers: list[Layer] = []
    number, inputs = 0, 3
    for stage, (outputs, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for position in range(count):
            pooled = 2 if stage and not position else 0
            number += 1 if pooled else 0
            layers.append(Layer(number, inputs, outputs, 3, 1, 1, pooled, position == count - 1))
            number, inputs = number + 2, outputs
    return tuple(layers)


VGG16 = _vgg16()


def scene(count: int = 10, pixels: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """True and predicted frames uint8 [count + 1, pixels, pixels, 3]: a square before a still background.

    In the prediction the square moves too slowly, fades, and the middle of the frame is noisy; a border of
    eight pixels is as it was, as the background of a robot's camera is.
    """
    y, x, channel = np.meshgrid(np.arange(pixels), np.arange(pixels), np.arange(3), indexing="ij")
    background = 96 + 48 * np.sin(0.21 * x + 0.13 * y + channel) + 16 * ((x // 8 + y // 8) % 2)
    truth, predicted = [], []
    inside = (np.minimum(x, y) >= 8) & (np.maximum(x, y) < pixels - 8)
    for t in range(count + 1):
        for frames, speed, strength in ((truth, 3.0, 1.0), (predicted, 2.0, 1.0 - 0.06 * t)):
            left = 10 + speed * t
            square = (x >= left) & (x < left + 12) & (y >= 24) & (y < 36)
            frame = np.where(square, background + strength * (220 - background), background)
            if frames is predicted and t:
                frame = frame + inside * 9 * np.sin(1.7 * x + 2.3 * y + t)
            frames.append(np.clip(np.rint(frame), 0, 255).astype(np.uint8))
    return np.stack(truth), np.stack(predicted)


def features(count: int, dimensions: int, phase: float) -> Floats:
    """Features [count, dimensions] of videos."""
    number = np.arange(count * dimensions, dtype=np.float64).reshape(count, dimensions)
    return np.asarray(np.cos(0.7 * number**1.3 + phase) + 0.1 * phase * np.arange(dimensions), np.float64)


def network_weights(layers: Sequence[Layer]) -> dict[str, Floats]:
    """`features.N.weight` and `.bias` of a network's convolutions."""
    weights: dict[str, Floats] = {}
    for layer in layers:
        fan_in = layer.inputs * layer.kernel**2
        values = np.cos(0.7 * np.arange(layer.outputs * fan_in) ** 1.1)
        shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
        weights[f"features.{layer.number}.weight"] = values.reshape(shape) * np.sqrt(3.0 / fan_in)
        weights[f"features.{layer.number}.bias"] = 0.1 * np.cos(np.arange(layer.outputs, dtype=np.float64))
    return weights


def alexnet_weights() -> dict[str, Floats]:
    """Those of AlexNet."""
    return network_weights(ALEXNET)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two frames in dB."""
    return float(10 * np.log10(255.0**2 / np.mean((one.astype(float) - other.astype(float)) ** 2)))


def psnr_published(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """The same of values 0 to 1, with 1e-8 added to the error, as the published script's library does."""
    return float(-10 * np.log10(np.mean((one / 255.0 - other / 255.0) ** 2) + 1e-8))


def ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """SSIM of two frames [H, W, 3] (Wang et al. 2004): Gaussian windows of 11 pixels inside the frame.

    Means, variances and covariance of every window are weighted sums over its pixels.
    """
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for channel in range(one.shape[2]):
        a, b = (sliding_window_view(frame[..., channel].astype(float), (11, 11)) for frame in (one, other))
        mean_a, mean_b = (np.sum(weights * each, axis=(2, 3), keepdims=True) for each in (a, b))
        variance_a = np.sum(weights * (a - mean_a) ** 2, axis=(2, 3))
        variance_b = np.sum(weights * (b - mean_b) ** 2, axis=(2, 3))
        covariance = np.sum(weights * (a - mean_a) * (b - mean_b), axis=(2, 3))
        m, n = mean_a[..., 0, 0], mean_b[..., 0, 0]
        upper = (2 * m * n + _C1) * (2 * covariance + _C2)
        values.append(upper / ((m**2 + n**2 + _C1) * (variance_a + variance_b + _C2)))
    return float(np.mean(values))


def ssim_filtered(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """The same as scikit-image computes it with Wang's settings: Gaussian filters, the border cut off."""
    from scipy.ndimage import gaussian_filter

    def smooth(values: Floats) -> Floats:
        return gaussian_filter(values, 1.5, truncate=3.5)

    values = []
    for channel in range(one.shape[2]):
        a, b = (frame[..., channel].astype(float) for frame in (one, other))
        m, n = smooth(a), smooth(b)
        variance_a, variance_b = smooth(a * a) - m * m, smooth(b * b) - n * n
        upper = (2 * m * n + _C1) * (2 * (smooth(a * b) - m * n) + _C2)
        values.append((upper / ((m**2 + n**2 + _C1) * (variance_a + variance_b + _C2)))[5:-5, 5:-5])
    return float(np.mean(values))


def lpips(
    one: NDArray[np.uint8],
    other: NDArray[np.uint8],
    weights: Mapping[str, Floats],
    linear: Sequence[Floats],
    layers: Sequence[Layer] = ALEXNET,
) -> float:
    """LPIPS of two frames [H, W, 3] (Zhang et al. 2018), layer by layer.

    Args:
        one: A frame.
        other: The other frame.
        weights: As of `network_weights`.
        linear: Weights [C] of the channels of each compared layer.
        layers: Of the network.
    """
    distance = 0.0
    activations = (lpips_layers(frame, weights, layers) for frame in (one, other))
    for a, b, of_layer in zip(*activations, linear, strict=True):
        a, b = (x / np.sqrt(1e-8 + np.sum(x**2, axis=0)) for x in (a, b))
        distance += float(np.mean(np.tensordot(of_layer, (a - b) ** 2, axes=1)))
    return distance


def lpips_layers(
    frame: NDArray[np.uint8], weights: Mapping[str, Floats], layers: Sequence[Layer] = ALEXNET
) -> list[Floats]:
    """Activations [C, H, W] of the layers that are compared."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x = ((frame / 127.5 - 1.0 - shift) / scale).transpose(2, 0, 1)
    activations = []
    for layer in layers:
        if layer.pooled:
            side = layer.pooled
            x = sliding_window_view(x, (side, side), axis=(1, 2))[:, ::2, ::2].max(axis=(3, 4))
        border = (layer.padding, layer.padding)
        kernel, step = layer.kernel, layer.stride
        x = np.pad(x, ((0, 0), border, border))
        windows = sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::step, ::step]
        x = np.tensordot(weights[f"features.{layer.number}.weight"], windows, axes=([1, 2, 3], [0, 3, 4]))
        x = np.maximum(0, x + weights[f"features.{layer.number}.bias"][:, None, None])
        if layer.compared:
            activations.append(x)
    return activations


def frechet_distance(one: Floats, other: Floats, freedom: int = 1) -> float:
    """Distance of the normal distributions of features [N, D]: with the matrix root of the covariances.

    Args:
        one: Features of one set.
        other: Features of the other.
        freedom: Subtracted from N in the covariances.
    """
    from scipy.linalg import sqrtm

    covariances = [np.cov(x.T, ddof=freedom) for x in (one, other)]
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    means = np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2)
    return float(means + np.trace(covariances[0] + covariances[1] - 2 * root))
