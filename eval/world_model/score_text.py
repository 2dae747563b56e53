"""World-model scores in words, from the content of `imagine.json`: for console, demo and report.

Light to import. Files of earlier versions have no score of predicting no change, and are shown without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from eval.world_model.published_scores import protocol_of

MEAN_OF_VIEWS = "mean of views"  # what rows of tables call it
_SCORES = {"psnr": ("PSNR", ".1f", " dB"), "ssim": ("SSIM", ".3f", ""), "lpips": ("LPIPS", ".3f", "")}


def scores_text(content: Mapping[str, Any]) -> str:
    """`PSNR 24.2 dB (no change: 26.7 dB), ... over 148 frames of 3 episodes, protocol tokens`.

    Of several views the mean, and the views' scores: `PSNR 24.2 dB (no change: 26.7 dB; agent 25.1, wrist
    23.3), ... over 148 frames of 3 episodes in 2 views, ...`.
    """
    views = views_of(content)
    parts = []
    for name, (title, form, unit) in _SCORES.items():
        value, baseline = content.get(name), content.get(f"no_change_{name}")
        if _is_finite(value):
            notes = [f"no change: {baseline:{form}}{unit}"] if _is_finite(baseline) else []
            by_view = [
                f"{view} {each:{form}}"
                for view, scores in views.items()
                if len(views) > 1 and _is_finite(each := scores.get(name))
            ]
            notes += [", ".join(by_view)] if by_view else []
            parts.append(f"{title} {value:{form}}{unit}" + (f" ({'; '.join(notes)})" if notes else ""))
    in_views = f" in {len(views)} views" if len(views) > 1 else ""
    frames = f"{frames_text(_lengths(content))}{in_views}, protocol {protocol_of(content)}"
    return f"{', '.join(parts)} over {frames}" if parts else frames


def views_of(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Scores by view; of one view the content itself, by an empty name where it does not say the camera."""
    found: dict[str, Mapping[str, Any]] = {}
    views: Any = content.get("views")
    for view in views if isinstance(views, list) else []:
        if isinstance(view, dict) and isinstance(view.get("view"), str):
            found[view["view"]] = view
    cameras: Any = content.get("cameras")
    if isinstance(cameras, list) and cameras and isinstance(cameras[0], str):
        return found or {cameras[0]: content}
    return found or {"": content}


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def frames_text(lengths: Sequence[int]) -> str:
    """Predicted frames of rollouts of these lengths: `148 frames of 3 episodes (49 to 50 each)`."""
    total = sum(lengths)
    frames = f"{total} frame{'' if total == 1 else 's'}"
    if len(lengths) < 2:
        return frames
    shortest, longest = min(lengths), max(lengths)
    each = str(longest) if shortest == longest else f"{shortest} to {longest}"
    return f"{frames} of {len(lengths)} episodes ({each} each)"


def _lengths(content: Mapping[str, Any]) -> list[int]:
    """Predicted frames of each rollout; of a file of one rollout without a list of them, its own."""
    rollouts = content.get("rollouts")
    rows = rollouts if isinstance(rollouts, list) else [content]
    frames = [row.get("frames") for row in rows if isinstance(row, dict)]
    return [len(each) for each in frames if isinstance(each, list | tuple)]
