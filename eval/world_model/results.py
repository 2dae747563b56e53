"""Results of world-model rollouts: scores, picture and video on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import InputError
from data.files import write_text_whole
from eval.config import WorldModelProtocol
from eval.contact_sheet import enlarge, evenly_spaced, label, tile
from eval.video import write_gif, write_video
from eval.world_model.horizons import HorizonScore
from eval.world_model.published_scores import METRICS, RYNNVLA_002
from eval.world_model.scores import FrameScore, mean_score, summary_of

_FRAMES_PER_SECOND = 5


@dataclass(frozen=True)
class Rollout:
    """Scores of one rolled-out episode.

    Attributes:
        episode: Key of the episode.
        split: Its split; an episode of `train` says little about unseen ones. All are `train` where the
            checkpoint was trained with `data.split=all`.
        instruction: The task in words.
        mean: Mean score of the scored frames.
        frames: Score of each of them: of the predicted ones, by the published protocol the given one first.
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
        protocol: How they were scored.
        rollouts: One per episode; picture and video show the first.
        mean: Means over all scored frames.
        horizons: Scores over the first 10 and 50 frames, where rollouts are that long.
        suites: Task suites of the episodes.
        picture: PNG: true frames above predicted ones, the given first frame at the left of both.
        video: MP4: true beside predicted.
        gif: The same as GIF; None: not requested.
        scores: JSON of all scores.
        failures: Metric -> why it was requested but could not be computed.
        notes: Caveats: what could not be verified, data that the checkpoint was not trained on.
    """

    protocol: WorldModelProtocol
    rollouts: tuple[Rollout, ...]
    mean: FrameScore
    horizons: tuple[HorizonScore, ...]
    suites: tuple[str, ...]
    picture: Path
    video: Path
    scores: Path
    gif: Path | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def frames(self) -> tuple[FrameScore, ...]:
        """Mean score of each scored frame, over the rollouts that are long enough."""
        longest = max(len(rollout.frames) for rollout in self.rollouts)
        return tuple(
            mean_score([rollout.frames[i] for rollout in self.rollouts if i < len(rollout.frames)])
            for i in range(longest)
        )

    def summary(self) -> dict[str, float]:
        """Computed scores by protocol and name: `tokens/psnr`, `tokens/no_change_fvd_50`, ..."""
        scores: dict[str, float | None] = summary_of(self.mean)
        for horizon in self.horizons:
            for name in METRICS:
                for key in (name, f"no_change_{name}"):
                    scores[f"{key}_{horizon.frames}"] = getattr(horizon, key)
        return {f"{self.protocol}/{name}": value for name, value in scores.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The scores as `imagine.json` has them."""
        return {
            "protocol": self.protocol,
            "episode": self.rollouts[0].episode,
            "split": self.rollouts[0].split,
            "instruction": self.rollouts[0].instruction,
            **summary_of(self.mean),
            "notes": list(self.notes),
            "horizons": [asdict(horizon) for horizon in self.horizons],
            "published_by_suite": {
                suite: {"RynnVLA-002": dict(RYNNVLA_002[suite])}
                for suite in self.suites
                if suite in RYNNVLA_002
            },
            "frames": [asdict(frame) for frame in self.frames],
            "rollouts": [asdict(rollout) for rollout in self.rollouts],
        }


def write_result(
    result: ImagineResult, request: dict[str, Any], truth: NDArray[np.uint8], predicted: NDArray[np.uint8]
) -> None:
    """Write all scores, then picture and video of the first rollout.

    Args:
        result: Scores and the files to write.
        request: Settings of the rollouts, for the JSON file.
        truth: True frames uint8 [T + 1, H, W, 3] of the first rollout.
        predicted: Predicted frames uint8 [T + 1, H, W, 3].

    Raises:
        InputError: The folder cannot be written.
    """
    truth, predicted = enlarge(truth), enlarge(predicted)
    pair = np.concatenate([truth, predicted], axis=2)
    try:
        result.scores.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(result.scores, json.dumps({**request, **result.to_json()}, indent=2) + "\n")
        Image.fromarray(_contact_sheet(truth, predicted)).save(result.picture)
        write_video(result.video, list(pair), _FRAMES_PER_SECOND)
        if result.gif is not None:
            write_gif(result.gif, list(pair), _FRAMES_PER_SECOND)
    except OSError as error:
        raise InputError(
            f"{result.scores.parent}: cannot write the rollout ({error.strerror}); choose another out"
        ) from error


def _contact_sheet(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Evenly spaced frames, the true ones above the predicted ones, with their numbers; frame 0 is given."""
    shown = evenly_spaced(len(truth))
    numbers = [f"frame {number}" if number else "given" for number in shown.tolist()]
    return label(tile(np.stack([truth[shown], predicted[shown]])), numbers, ["true", "predicted"])
