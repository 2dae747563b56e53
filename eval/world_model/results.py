"""Results of world-model rollouts: scores, picture and video on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import InputError
from eval.contact_sheet import enlarge, evenly_spaced, label, tile
from eval.video import write_gif, write_video
from eval.world_model.scores import FrameScore, HorizonScore, mean_score

_FRAMES_PER_SECOND = 5


@dataclass(frozen=True)
class Rollout:
    """Scores of one rolled-out episode.

    Attributes:
        episode: Key of the episode.
        split: Its split; an episode of `train` says little about unseen ones. All are `train` where the
            checkpoint was trained with `data.split=all`.
        instruction: The task in words.
        mean: Mean score of the predicted frames.
        frames: Score of each predicted frame.
    """

    episode: str
    split: str
    instruction: str
    mean: FrameScore
    frames: tuple[FrameScore, ...]


@dataclass(frozen=True)
class ImagineResult:
    """World-model rollouts and their files.

    Attributes:
        rollouts: One per episode; picture and video show the first.
        psnr, ssim: Means over all predicted frames.
        lpips: The same; None: not computed.
        horizons: Scores over the first 10 and 50 frames, where rollouts are that long.
        picture: PNG: true frames above predicted ones, the given first frame at the left of both.
        video: MP4: true beside predicted.
        gif: The same as GIF; None: not requested.
        scores: JSON of all scores.
    """

    rollouts: tuple[Rollout, ...]
    psnr: float
    ssim: float
    lpips: float | None
    horizons: tuple[HorizonScore, ...]
    picture: Path
    video: Path
    scores: Path
    gif: Path | None = None

    @property
    def frames(self) -> tuple[FrameScore, ...]:
        """Mean score of each predicted frame, over the rollouts that are long enough."""
        longest = max(len(rollout.frames) for rollout in self.rollouts)
        return tuple(
            mean_score([rollout.frames[i] for rollout in self.rollouts if i < len(rollout.frames)])
            for i in range(longest)
        )

    def summary(self) -> dict[str, float]:
        """Computed scores by name: `psnr`, `ssim`, ... and `psnr_10`, `fvd_50`, ..."""
        scores: dict[str, float | None] = {"psnr": self.psnr, "ssim": self.ssim, "lpips": self.lpips}
        for horizon in self.horizons:
            for name in ("fvd", "psnr", "ssim", "lpips"):
                scores[f"{name}_{horizon.frames}"] = getattr(horizon, name)
        return {name: value for name, value in scores.items() if value is not None}


def write_result(
    result: ImagineResult, request: dict[str, Any], truth: NDArray[np.uint8], predicted: NDArray[np.uint8]
) -> None:
    """Write all scores, and picture and video of the first rollout.

    Args:
        result: Scores and the files to write.
        request: Settings of the rollouts, for the JSON file.
        truth: True frames uint8 [T + 1, H, W, 3] of the first rollout.
        predicted: Predicted frames uint8 [T + 1, H, W, 3].

    Raises:
        InputError: The folder cannot be written.
    """
    numbers = {
        "episode": result.rollouts[0].episode,
        "split": result.rollouts[0].split,
        "instruction": result.rollouts[0].instruction,
        "psnr": result.psnr,
        "ssim": result.ssim,
        "lpips": result.lpips,
        "horizons": [asdict(horizon) for horizon in result.horizons],
        "frames": [asdict(frame) for frame in result.frames],
        "rollouts": [asdict(rollout) for rollout in result.rollouts],
    }
    truth, predicted = enlarge(truth), enlarge(predicted)
    pair = np.concatenate([truth, predicted], axis=2)
    try:
        result.scores.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_contact_sheet(truth, predicted)).save(result.picture)
        write_video(result.video, list(pair), _FRAMES_PER_SECOND)
        if result.gif is not None:
            write_gif(result.gif, list(pair), _FRAMES_PER_SECOND)
        result.scores.write_text(json.dumps({**request, **numbers}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{result.scores.parent}: cannot write the rollout ({error.strerror}); choose another out"
        ) from error


def _contact_sheet(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Evenly spaced frames, the true ones above the predicted ones, with their numbers; frame 0 is given."""
    shown = evenly_spaced(len(truth))
    numbers = [f"frame {number}" if number else "given" for number in shown.tolist()]
    return label(tile(np.stack([truth[shown], predicted[shown]])), numbers, ["true", "predicted"])
