"""Picture and video of a rollout: true frames beside predicted ones, of every view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.contact_sheet import enlarge, evenly_spaced, label, tile


class ViewFrames(NamedTuple):
    """Frames of one view of a rollout, uint8 [T + 1, H, W, 3] each; the first was given.

    Attributes:
        truth: True frames.
        predicted: Predicted frames.
    """

    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


def contact_sheet(views: Mapping[str, ViewFrames]) -> NDArray[np.uint8]:
    """Evenly spaced frames with their numbers, uint8 [H', W', 3]; frame 0 is given.

    Each view has a row of true frames and below it one of predicted frames.
    """
    shown = evenly_spaced(len(next(iter(views.values())).truth))
    rows = {
        f"{kind} {view}" if len(views) > 1 else kind: enlarge(frames[shown])
        for view, of_view in views.items()
        for kind, frames in zip(("true", "predicted"), of_view, strict=True)
    }
    numbers = [f"frame {number}" if number else "given" for number in shown.tolist()]
    return label(tile(np.stack(list(rows.values()))), numbers, list(rows))


def video_frames(views: Mapping[str, ViewFrames]) -> list[NDArray[np.uint8]]:
    """Frames of a video, uint8 [H', W', 3] of even sides: the true frame beside the predicted one.

    Several views are below one another, with labels.
    """
    pairs = {view: np.stack([enlarge(frames) for frames in pair]) for view, pair in views.items()}
    if len(views) == 1:
        (pair,) = pairs.values()
        return list(np.concatenate(list(pair), axis=2))
    steps = np.stack(list(pairs.values())).transpose(2, 0, 1, 3, 4, 5)  # [T + 1, V, 2, H, W, 3]
    return [_even(label(tile(frames), ["true", "predicted"], list(pairs))) for frames in steps]


def _even(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with a white line at the bottom or the right where a side is odd."""
    height, width, _ = picture.shape
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
