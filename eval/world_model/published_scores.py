"""Published scores of world models, FVD, PSNR in dB, SSIM and LPIPS of each, and the protocols of ours.

WorldVLA (arXiv 2506.21539): over 10 and 50 frames of the third-person camera, its only one. RynnVLA-002
(arXiv 2511.17502), action-world model: by suite, without the number of frames. Its published script rolls the
third-person and the wrist view out together and writes videos of each; which of them the scores are of is not
known here. All on held-out demonstrations of LIBERO.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from data.contracts import AGENT_CAMERA
from eval.config import WorldModelProtocol

METRICS = ("fvd", "psnr", "ssim", "lpips")
Scores = Mapping[str, float]

WORLDVLA: Mapping[int, Scores] = {
    10: {"fvd": 255.1, "psnr": 29.77, "ssim": 0.9040, "lpips": 0.1194},
    50: {"fvd": 674.1, "psnr": 24.30, "ssim": 0.8355, "lpips": 0.1544},
}
"""By number of frames."""

RYNNVLA_002: Mapping[str, Scores] = {
    "libero_goal": {"fvd": 336.8, "psnr": 22.13, "ssim": 0.7813, "lpips": 0.1943},
    "libero_object": {"fvd": 877.2, "psnr": 22.18, "ssim": 0.6503, "lpips": 0.2260},
    "libero_spatial": {"fvd": 373.1, "psnr": 23.88, "ssim": 0.8241, "lpips": 0.1633},
    "libero_10": {"fvd": 427.86, "psnr": 19.36, "ssim": 0.7219, "lpips": 0.2778},
}
"""By suite."""

_COMPARISON: Mapping[WorldModelProtocol, str] = {
    "tokens": (
        "published scores follow another protocol and are not comparable: against camera frames (here: those "
        "frames decoded by the image tokenizer), read back from MP4 at 256 px, the given frame counted as "
        "predicted, LPIPS with VGG (here: AlexNet), covariances over N (here: N - 1); protocol=published "
        "measures in that way"
    ),
    "published": (
        "published scores are of LIBERO's held-out demonstrations; measured here as in the script that "
        "RynnVLA-002's authors have published: against camera frames, read back from MP4 at 256 px, the "
        "given frame counted, LPIPS with VGG, covariances over N. That WorldVLA's are by that script is "
        "likely, not proven, and the number of frames and the view of RynnVLA-002's are not published"
    ),
}


def worldvla_scores(frames: int, view: str) -> Scores:
    """WorldVLA's scores over so many frames of a view; empty: it has none."""
    return WORLDVLA.get(frames, {}) if view == AGENT_CAMERA else {}


def comparison(protocol: WorldModelProtocol) -> str:
    """How far published scores may be compared with those of a protocol, in words."""
    return _COMPARISON[protocol]


def protocol_of(content: Mapping[str, object]) -> WorldModelProtocol:
    """Protocol of the scores in `imagine.json`; earlier versions had `tokens` alone and did not say so."""
    found = content.get("protocol")
    return next((each for each in get_args(WorldModelProtocol) if each == found), "tokens")
