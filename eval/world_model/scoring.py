"""Rolled-out codes to compared frames and their scores, by either protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.tokens.image import ImageTokenizer
from eval.world_model.backbone_errors import failure_reason
from eval.world_model.horizons import FAILED, ScoredRollout
from eval.world_model.lpips import Lpips
from eval.world_model.mp4 import through_mp4
from eval.world_model.pictures import ViewFrames
from eval.world_model.protocol import ScoringProtocol
from eval.world_model.scores import Videos, score, without_lpips


class RolledOut(NamedTuple):
    """One view of a rolled-out episode; its first frame was given.

    Attributes:
        true_codes, codes: True and predicted image codes int64 [T + 1, R, C].
        camera: The camera's frames uint8 [T + 1, H, W, 3]; None: those that the true codes decode to are
            compared.
    """

    true_codes: NDArray[np.int64]
    codes: NDArray[np.int64]
    camera: NDArray[np.uint8] | None = None

    def frames(self, image: ImageTokenizer) -> ViewFrames:
        """True and predicted frames; the given frame is the same in both."""
        predicted = image.decode(self.codes)
        if self.camera is None:
            return ViewFrames(image.decode(self.true_codes), predicted)
        return ViewFrames(self.camera, np.concatenate([self.camera[:1], predicted[1:]]))

    def videos(self, image: ImageTokenizer, protocol: ScoringProtocol) -> Videos:
        """The frames that are compared."""
        videos = Videos.of_rollout(*self.frames(image), protocol.first)
        if self.camera is None:
            return videos
        return Videos(*(through_mp4(frames) for frames in videos))


def score_rollouts(
    image: ImageTokenizer,
    views: Mapping[str, Sequence[RolledOut]],
    lpips: Lpips | None,
    protocol: ScoringProtocol,
) -> tuple[dict[str, list[ScoredRollout]], dict[str, str]]:
    """Decode and score the rollouts of each view.

    LPIPS is left out of all where it fails for one, and the reason returned.
    """
    scored: dict[str, list[ScoredRollout]] = {view: [] for view in views}
    failures: dict[str, str] = {}
    for view, rollout in ((view, rollout) for view, rollouts in views.items() for rollout in rollouts):
        videos = rollout.videos(image, protocol)
        try:
            scores = score(videos, rollout.true_codes, rollout.codes, lpips, protocol)
        except RuntimeError as error:  # the backbone's: out of memory
            if lpips is None:
                raise
            lpips, failures["lpips"] = None, f"{FAILED}: {failure_reason(error)}"
            scores = score(videos, rollout.true_codes, rollout.codes, None, protocol)
        scored[view].append(ScoredRollout(videos, scores))
    if failures:
        for view, rollouts in scored.items():
            scored[view] = [each._replace(scores=without_lpips(each.scores)) for each in rollouts]
    return scored, failures
