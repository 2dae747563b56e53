"""Results of an open-loop comparison: curves, errors and a picture on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import InputError
from data.files import write_text_whole
from data.tokens.action import ActionRanges
from eval.contact_sheet import enlarge, label, tile
from eval.open_loop.partings import constant_actions, largest_partings, relative_errors
from pretrain.run_layout import OPEN_LOOP_STEM

_DIGITS = 5  # significant ones of a stored number


@dataclass(frozen=True)
class ComparedEpisode:
    """The policy's first predicted action at each frame of a demonstration of T steps.

    Attributes:
        episode: Key of the demonstration.
        split: Its split; one of `train` says little about unseen ones.
        instruction: The task in words.
        predicted: float64 [T, D].
        expert: The recorded actions, float64 [T, D].
        entropy: Of the first predicted action's tokens in nats, mean over its numbers, fp32 [T]; None: the
            policy has no distributions.
    """

    episode: str
    split: str
    instruction: str
    predicted: NDArray[np.float64]
    expert: NDArray[np.float64]
    entropy: NDArray[np.float32] | None


@dataclass(frozen=True)
class OpenLoopResult:
    """A policy against the expert on held-out demonstrations.

    Attributes:
        names: Of the D numbers of an action.
        ranges: Of these numbers, by which errors are made relative.
        present: Which of them the robot has, bool [D].
        episodes: At least one.
        notes: Caveats.
    """

    names: tuple[str, ...]
    ranges: ActionRanges
    present: NDArray[np.bool_]
    episodes: tuple[ComparedEpisode, ...]
    notes: tuple[str, ...] = ()

    @property
    def mean_absolute_error(self) -> NDArray[np.float64]:
        """Of each number of an action over all frames, in its units, [D]."""
        errors = [np.abs(each.predicted - each.expert) for each in self.episodes]
        return np.concatenate(errors).mean(axis=0)

    def errors(self, number: int) -> NDArray[np.float64]:
        """Error of each frame of an episode as a share of the ranges, [T]."""
        episode = self.episodes[number]
        return relative_errors(episode.predicted, episode.expert, self.ranges, self.present)

    @property
    def error(self) -> float:
        """Mean error over all frames, as a share of the numbers' ranges."""
        return float(np.concatenate([self.errors(i) for i in range(len(self.episodes))]).mean())

    @property
    def constant_error(self) -> float:
        """The same of each episode's best constant action."""
        errors = [
            relative_errors(constant_actions(each.expert), each.expert, self.ranges, self.present)
            for each in self.episodes
        ]
        return float(np.concatenate(errors).mean())

    @property
    def partings(self) -> list[int]:
        """Frames of the first episode where the policy parts most from the expert."""
        return largest_partings(self.errors(0))

    def summary(self) -> dict[str, float]:
        """The errors by name, as shares of the ranges."""
        return {"error": self.error, "constant_error": self.constant_error}

    def to_json(self) -> dict[str, Any]:
        """The content of `open_loop.json`."""
        errors = self.errors(0)
        return {
            "names": list(self.names),
            "minimum": list(self.ranges.minimum),
            "maximum": list(self.ranges.maximum),
            "present": self.present.tolist(),
            **self.summary(),
            "mean_absolute_error": self.mean_absolute_error.tolist(),
            "partings": [{"frame": frame, "error": float(errors[frame])} for frame in self.partings],
            "episodes": [_episode_json(episode) for episode in self.episodes],
            "notes": list(self.notes),
        }


def _episode_json(episode: ComparedEpisode) -> dict[str, Any]:
    return {
        "episode": episode.episode,
        "split": episode.split,
        "instruction": episode.instruction,
        "predicted": [_short(row) for row in episode.predicted],
        "expert": [_short(row) for row in episode.expert],
        "entropy": None if episode.entropy is None else _short(episode.entropy),
    }


def _short(values: NDArray[np.floating]) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]


def write_open_loop(
    result: OpenLoopResult,
    request: Mapping[str, Any],
    frames: Mapping[str, NDArray[np.uint8]],
    folder: Path,
) -> None:
    """Write `open_loop.json`, and `open_loop.png` with the frames where policy and expert part.

    Args:
        result: The comparison.
        request: What it depends on, for the JSON file.
        frames: Camera -> its frames at the partings, uint8 [P, H, W, 3].
        folder: Of the evaluation.

    Raises:
        InputError: The folder cannot be written.
    """
    file = folder / f"{OPEN_LOOP_STEM}.json"
    picture = file.with_suffix(".png")
    try:
        if result.partings:
            Image.fromarray(_picture(result.errors(0), result.partings, frames)).save(picture)
        else:
            picture.unlink(missing_ok=True)  # of an earlier comparison
        write_text_whole(file, json.dumps({**request, **result.to_json()}) + "\n")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot write the comparison with the expert ({error.strerror}); free space there, or "
            "make it writable"
        ) from error


def _picture(
    errors: NDArray[np.float64], partings: Sequence[int], frames: Mapping[str, NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    columns = [f"step {frame}: {100 * errors[frame]:.0f} %" for frame in partings]
    return label(tile(np.stack([enlarge(each) for each in frames.values()])), columns, list(frames))
