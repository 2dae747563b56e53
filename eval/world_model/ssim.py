"""Structural similarity of frames (Wang et al. 2004, "Image quality assessment").

torchmetrics' takes ten times as long and more: it slides the two-dimensional window over the frame. A
Gaussian window is the product of one for the rows and one for the columns: here two products of matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 11  # side in pixels
_SIGMA = 1.5  # pixels
_STABILISERS = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)  # C1 and C2 of the paper, for values of 0 .. 255


def ssim(true: Tensor, other: Tensor) -> Tensor:
    """SSIM [N] of frames float64 [N, C, H, W] of 0 .. 255, the mean over channels and windows.

    Only windows that lie wholly in the frame count: its sides are at least `WINDOW` pixels.
    """
    c1, c2 = _STABILISERS
    products = torch.cat([true, other, true * true, other * other, true * other])
    mean, other_mean, square, other_square, product = _window_means(products).chunk(5)
    luminance = (2 * mean * other_mean + c1) / (mean**2 + other_mean**2 + c1)
    variances = (square - mean**2) + (other_square - other_mean**2)
    structure = (2 * (product - mean * other_mean) + c2) / (variances + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window_means(x: Tensor) -> Tensor:
    """Weighted means [N, C, H - 10, W - 10] over every Gaussian window of [N, C, H, W]."""
    return _weights(x.shape[-2], x) @ (x @ _weights(x.shape[-1], x).T)


def _weights(size: int, like: Tensor) -> Tensor:
    """Weights [size - 10, size] of each window along one side; every row sums to 1."""
    offsets = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    window = torch.softmax(-(offsets**2) / (2 * _SIGMA**2), dim=0)
    count = size - WINDOW + 1
    weights = window.new_zeros((count, size))
    for first in range(count):
        weights[first, first : first + WINDOW] = window
    return weights
