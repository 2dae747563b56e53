"""The two ways in which predicted frames are scored (docs/evaluation.md, "Two protocols").

`tokens` scores the transformer alone: predicted frames against the true codes' frames. `published` measures
as the script that RynnVLA-002's authors have published: camera frames, both videos read back from MP4, the
given frame counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from eval.config import WorldModelProtocol
from eval.world_model.lpips import ALEXNET, VGG16, Backbone


@dataclass(frozen=True)
class ScoringProtocol:
    """What the numbers depend on beside the frames.

    Attributes:
        name: Value of the setting `protocol`.
        backbone: Network of LPIPS.
        first: The first frame that is scored: 1, or 0 where the given one counts.
        psnr_epsilon: Added to the mean squared error of values of 0 .. 1 (piqa's, of the published script).
        psnr_limit: Score of equal frames in dB, which without an epsilon would be infinite.
        inputs_from_pixels: Whether a prediction is decoded to pixels and encoded again before it is the next
            input.
        freedom: As of `eval.world_model.fvd.frechet_distance`.
    """

    name: WorldModelProtocol
    backbone: Backbone
    first: int
    psnr_epsilon: float
    psnr_limit: float
    inputs_from_pixels: bool
    freedom: int

    def scored_frames(self, predicted: int) -> int:
        """Number of frames that are scored of a rollout with so many predictions."""
        return predicted + 1 - self.first


TOKENS = ScoringProtocol(
    "tokens", ALEXNET, first=1, psnr_epsilon=0.0, psnr_limit=60.0, inputs_from_pixels=False, freedom=1
)
PUBLISHED = ScoringProtocol(
    "published", VGG16, first=0, psnr_epsilon=1e-8, psnr_limit=80.0, inputs_from_pixels=True, freedom=0
)


def scoring_protocol(name: WorldModelProtocol) -> ScoringProtocol:
    """The protocol of that name."""
    return PUBLISHED if name == "published" else TOKENS
