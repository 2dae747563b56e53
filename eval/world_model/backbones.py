"""The backbones of LPIPS and FVD: opened and tried before the first rollout."""

from __future__ import annotations

from pathlib import Path

from eval.config import ImagineConfig
from eval.world_model.fvd import VideoFeatures
from eval.world_model.horizons import HORIZONS
from eval.world_model.lpips import Lpips
from eval.world_model.protocol import TOKENS, ScoringProtocol


def open_backbones(
    lpips_weights: str | None,
    fvd_network: str | None,
    frames: int,
    prefix: str = "",
    protocol: ScoringProtocol = TOKENS,
) -> tuple[Lpips | None, VideoFeatures | None]:
    """Open the backbones of LPIPS and FVD, and try the latter on as many frames as it will get.

    Args:
        lpips_weights: As in `ImagineConfig`.
        fvd_network: As in `ImagineConfig`.
        frames: Number of frames that will be predicted.
        prefix: Of the settings' names in messages (`eval.`).
        protocol: How frames are scored.

    Raises:
        InputError: A file that cannot be used.
    """
    lpips = None
    if lpips_weights:
        lpips = Lpips(Path(lpips_weights), f"{prefix}lpips_weights", protocol.backbone)
    features = VideoFeatures(Path(fvd_network), f"{prefix}fvd_network") if fvd_network else None
    if features is not None:
        scored = protocol.scored_frames(frames)
        features.check([length for length in HORIZONS if length <= scored] or HORIZONS[:1])
    return lpips, features


def not_requested(config: ImagineConfig, protocol: ScoringProtocol) -> dict[str, str]:
    """Metrics that cannot be computed, with the setting that is missing or too small."""
    needed = {"lpips": ("lpips_weights", config.lpips_weights), "fvd": ("fvd_network", config.fvd_network)}
    missing = {metric: f"{name} is not set" for metric, (name, value) in needed.items() if not value}
    fewest = HORIZONS[0] - protocol.scored_frames(0)
    if "fvd" not in missing and config.frames < fewest:
        missing["fvd"] = f"frames={config.frames}, needs at least {fewest}"
    return missing
