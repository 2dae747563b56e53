"""The cameras' frames of a data set's episodes, read from the demonstrations that it was prepared from.

Shards hold image codes, not pixels. So demonstrations are found by the episode's key, filtered and resized as
`worldvla prepare` does it, and compared with what the shard holds: the number of steps, the actions, and the
codes of the frames, encoded again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.contracts import Demonstration, Episode
from data.errors import InputError
from data.prepare.frames import fit_frames
from data.prepare.preparer import Replay
from data.sources.no_ops import moving_steps
from data.sources.registry import open_source
from data.storage.index import DatasetIndex
from eval.config import ImagineConfig
from eval.policy.loaded_model import LoadedModel

# Share of codes that may be others. Frames off by a grey level (another video decoder or renderer) have 2 to
# 4 % other codes, those of the next time step 50 % (measured on robosuite's Lift).
_MAX_OTHER_CODES = 0.05
_ACTION_ERROR = 1e-6  # data sets of an earlier version hold actions as float32


class CameraFrames:
    """Reads the frames of one data set's episodes.

    Args:
        config: Where the demonstrations are, and how they are read.
        model: Its image tokenizer made the codes; its cameras are read.
        index: The data set.
        replay: Replays a demonstration in its simulator; required where `config.replay` is set.

    Raises:
        InputError: No demonstrations there, or settings that are not those of the data set.
    """

    def __init__(
        self, config: ImagineConfig, model: LoadedModel, index: DatasetIndex, replay: Replay | None = None
    ) -> None:
        if config.replay and replay is None:
            raise InputError("replay=true: needs a simulator, which this program was called without")
        self._config, self._image, self._index = config, model.image, index
        self._cameras = model.settings.cameras
        self._replay = replay if config.replay else None
        self._source = open_source(config)
        self._references = {reference.key: reference for reference in self._source.references()}

    def check(self, keys: list[str]) -> None:
        """Refuse demonstrations that are missing or lack a camera, before any of them is read.

        Raises:
            InputError: The first of these episodes without a usable demonstration.
        """
        for key in keys:
            reference = self._references.get(key)
            if reference is None:
                some = ", ".join(list(self._references)[:3])
                raise self._mismatch(key, f"there is no such demonstration, but {some}, ...")
            if reference.fault:
                raise InputError(reference.fault)
            for camera in self._cameras:
                if camera not in reference.cameras:
                    found = ", ".join(reference.cameras)
                    raise self._mismatch(key, f"it has no camera {camera!r}, only {found}")

    def read(self, episode: Episode, count: int) -> dict[str, NDArray[np.uint8]]:
        """The first `count` frames of each camera, uint8 [count or less, pixels, pixels, 3].

        Raises:
            InputError: They are not what the data set was made of.
        """
        self.check([episode.key])
        demonstration = self._demonstration(episode.key)
        moving = moving_steps(demonstration.actions, self._source.no_ops())
        actions = demonstration.actions[moving]
        if len(actions) != episode.length:
            raise self._mismatch(
                episode.key, f"{len(actions)} of its steps move the robot, the episode has {episode.length}"
            )
        if not np.allclose(actions, episode.actions, rtol=0, atol=_ACTION_ERROR):
            raise self._mismatch(episode.key, "its actions are not those of the episode")
        return {
            camera: self._fitted(episode, camera, demonstration.frames[camera][moving][:count])
            for camera in self._cameras
        }

    def _fitted(self, episode: Episode, camera: str, recorded: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A camera's recorded frames at the size of the data set's, whose codes they have."""
        pixels, resize = self._image.pixels, self._config.resize
        if recorded.shape[1:3] != (pixels, pixels) and resize != self._index.resize:
            raise InputError(
                f"resize={resize}: the frames of {self._index.url} were resized with {self._index.resize}; "
                f"give resize={self._index.resize}"
            )
        frames = fit_frames(recorded, pixels, self._config.fit, resize)
        codes = episode.codes[camera][: len(frames)]
        other = float((self._image.encode(frames) != codes).mean())
        if other > _MAX_OTHER_CODES:
            of_camera = f" of camera {camera}" if len(self._cameras) > 1 else ""
            raise self._mismatch(
                episode.key,
                f"its frames{of_camera} encode to other codes than the episode's: {100 * other:.1f} %, at "
                f"most {100 * _MAX_OTHER_CODES:g} % is rounding",
            )
        return frames

    def _demonstration(self, key: str) -> Demonstration:
        reference = self._references[key]
        if self._replay is None:
            return self._source.read(reference)
        replayed = self._replay(reference, self._image.pixels)
        if replayed is None:
            raise self._mismatch(key, "its replay does not succeed")
        return replayed

    def _mismatch(self, key: str, found: str) -> InputError:
        return InputError(
            f"source={self._config.source}: {key}: {found}; give source and settings (rotate, fit, cameras, "
            f"replay) as the data set {self._index.url} was prepared with"
        )
