"""World-model scores in words, from the content of `imagine.json`: for console, demo and report.

Light to import. Files of earlier versions have no score of predicting no change, and are shown without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from eval.world_model.published_scores import protocol_of

_SCORES = {"psnr": ("PSNR", ".1f", " dB"), "ssim": ("SSIM", ".3f", ""), "lpips": ("LPIPS", ".3f", "")}


def scores_text(content: Mapping[str, Any]) -> str:
    """`PSNR 24.2 dB (no change: 26.7 dB), ... over 148 frames of 3 episodes, protocol tokens`."""
    parts = []
    for name, (title, form, unit) in _SCORES.items():
        value, baseline = content.get(name), content.get(f"no_change_{name}")
        if _is_finite(value):
            text = f"{title} {value:{form}}{unit}"
            if _is_finite(baseline):
                text += f" (no change: {baseline:{form}}{unit})"
            parts.append(text)
    frames = f"{frames_text(_lengths(content))}, protocol {protocol_of(content)}"
    return f"{', '.join(parts)} over {frames}" if parts else frames


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
