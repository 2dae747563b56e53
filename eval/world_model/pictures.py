"""Picture and video of a rollout: true frames beside predicted ones, of every view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from eval.contact_sheet import enlarge, label, tile

_DOUBLINGS = 8  # from frame 4 on: up to frame 512
_TEXT_PIXELS = 16


class ViewFrames(NamedTuple):
    """Frames of one view of a rollout, uint8 [T + 1, H, W, 3] each; the first was given.

    Attributes:
        truth: True frames.
        predicted: Predicted frames.
    """

    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


def shown_frames(length: int) -> list[int]:
    """Numbers of the frames that are shown of a rollout of T predicted ones: 0, 1, 4, 8, 16, ... and T.

    The first steps tell how well one prediction does, the later ones how errors add up.

    Args:
        length: T.
    """
    return sorted(
        {0, length} | {step for step in (1, *(4 * 2**i for i in range(_DOUBLINGS))) if step <= length}
    )


def contact_sheet(
    views: Mapping[str, ViewFrames], psnr: Mapping[str, Mapping[int, float]] | None = None
) -> NDArray[np.uint8]:
    """The frames of `shown_frames` with their numbers, uint8 [H', W', 3]; frame 0 is given.

    Each view has a row of true frames, below it one of predicted frames and one of their difference: white
    where they agree, black where they differ by half of the range or more.

    Args:
        views: Frames of each view.
        psnr: View -> number of a frame -> its PSNR in dB, written on the difference; None: not written.
    """
    shown = shown_frames(len(next(iter(views.values())).truth) - 1)
    rows: dict[str, NDArray[np.uint8]] = {}
    for view, (truth, predicted) in views.items():
        suffix = f" {view}" if len(views) > 1 else ""
        rows[f"true{suffix}"] = enlarge(truth[shown])
        rows[f"predicted{suffix}"] = enlarge(predicted[shown])
        known = {} if psnr is None else psnr.get(view, {})
        rows[f"error{suffix}"] = _labelled(
            enlarge(difference(truth[shown], predicted[shown])),
            [f"{known[number]:.1f} dB" if number and number in known else "" for number in shown],
        )
    numbers = [f"frame {number}" if number else "given" for number in shown]
    return label(tile(np.stack(list(rows.values()))), numbers, list(rows))


def difference(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures of the mean absolute difference of the colours of frames uint8 [T, H, W, 3]."""
    errors = np.abs(truth.astype(np.int16) - predicted).mean(axis=-1, keepdims=True)
    return np.repeat(255 - np.minimum(2 * errors, 255).astype(np.uint8), 3, axis=-1)


def _labelled(frames: NDArray[np.uint8], texts: Sequence[str]) -> NDArray[np.uint8]:
    """Frames [T, H, W, 3] with a text in the lower left corner of each."""
    font, labelled = ImageFont.load_default(_TEXT_PIXELS), []
    for frame, text in zip(frames, texts, strict=True):
        picture = Image.fromarray(frame)
        if text:
            place = (4, frame.shape[0] - 4)
            draw = ImageDraw.Draw(picture)
            draw.rectangle(draw.textbbox(place, text, font=font, anchor="lb"), fill="white")
            draw.text(place, text, fill="black", font=font, anchor="lb")
        labelled.append(np.asarray(picture))
    return np.stack(labelled)


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
