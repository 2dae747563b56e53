"""Reconstruction quality of an image tokenizer on a data set: an upper bound for models on its codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.config import PrepareConfig
from data.errors import InputError
from data.prepare.frames import fit_frames
from data.prepare.index_builder import choose_split_order
from data.sources.interface import DemonstrationReference
from data.sources.registry import open_source

_MAX_DEMONSTRATIONS = 10


class FrameCodec(Protocol):
    """An image tokenizer as used here (`data.tokens.image.ImageTokenizer` is one)."""

    @property
    def pixels(self) -> int:
        """Side of the frames."""
        ...

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Frames uint8 [N, H, W, 3] -> codes uint16 [N, R, C]."""
        ...

    def decode(self, codes: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Codes uint16 [N, R, C] -> frames uint8 [N, H, W, 3]."""
        ...


def reconstruction_psnr(config: PrepareConfig, tokenizer: FrameCodec, frames: int = 16) -> dict[str, float]:
    """PSNR in dB by camera, over frames that are not in the training split.

    Args:
        config: Where the demonstrations are.
        tokenizer: Encodes and decodes.
        frames: Number of frames of each task's last demonstration (which the splits reserve for validation),
            evenly spaced.

    Raises:
        InputError: A demonstration is invalid.
    """
    squared: dict[str, list[float]] = {}
    source = open_source(config)
    usable = [reference for reference in source.references() if not reference.fault]
    if usable and choose_split_order(config, usable[0].path) == "letters":
        usable.sort(key=lambda reference: reference.key)
    for reference in _last_of_each_task(usable)[:_MAX_DEMONSTRATIONS]:
        try:
            demonstration = source.read(reference)
        except InputError:
            if not config.skip_bad:
                raise
            continue  # left out of the data set as well
        for camera, recorded in demonstration.frames.items():
            chosen = np.linspace(0, len(recorded) - 1, min(frames, len(recorded))).astype(np.int64)
            true = fit_frames(recorded[chosen], tokenizer.pixels, config.fit, config.resize)
            error = tokenizer.decode(tokenizer.encode(true)).astype(np.float64) - true
            squared.setdefault(camera, []).append(float(np.square(error).mean()))
    return {camera: _psnr(sum(errors) / len(errors)) for camera, errors in sorted(squared.items())}


def _last_of_each_task(references: Sequence[DemonstrationReference]) -> list[DemonstrationReference]:
    return list({(reference.suite, reference.task): reference for reference in references}.values())


def _psnr(squared_error: float) -> float:
    return 10 * math.log10(255**2 / squared_error) if squared_error > 0 else math.inf
