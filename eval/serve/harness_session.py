"""vla-eval's harness: one observation for each step, one action for each observation.

The harness speaks first (`hello`), says where an episode begins, and shows every step's frame; so the history
is that of evaluation, and the chunk of K actions is handed out here, open loop.
"""

from __future__ import annotations

import io
import time
import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.contracts import DEFAULT_EMBODIMENT, WRIST_CAMERA
from eval.pool.messages import PolicySpec
from eval.serve.observation_schema import (
    HARNESS_IMAGES,
    HARNESS_STATE,
    Frame,
    Frames,
    check_frame,
    check_prompt,
    check_state,
)
from eval.serve.policy_process import served_observation
from eval.serve.protocol import ClientError, array_of, describe, pack, shown, unpack
from eval.serve.sessions import Act, Episode
from eval.simulator.interface import ACTION_LIMIT

PROTOCOL_VERSION = 1
_PROMPT, _IMAGES, _ENCODED = "task_description", "images", "__image__"
_RANGE = [-ACTION_LIMIT, ACTION_LIMIT]
# What the harness compares with the benchmark: motions of the hand, rotation vector, gripper closed at 1.
_ACTION = {
    "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": _RANGE},
    "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle"},
    "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": _RANGE},
}
_IMAGE_SPEC = {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}
_STATE_FORMAT = "eef_pos3_axisangle3_gripper2"
_RAW = "raw"  # what the harness calls numbers without a convention that it knows
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)


class HarnessSession:
    """A conversation with vla-eval's harness.

    Args:
        spec: What the policy observes, and its chunk.
        metadata: Part of the answer to `hello`, and of the harness's results.
        act: Decides.
    """

    greeting = None

    def __init__(self, spec: PolicySpec, metadata: Mapping[str, Any], act: Act) -> None:
        self._spec, self._metadata, self._act = spec, metadata, act
        self._cameras = [HARNESS_IMAGES[camera] for camera in spec.cameras]
        self._episode = Episode(spec.history)
        self._remaining: deque[NDArray[np.float64]] = deque()  # of the chunk that is acted out

    async def answer(self, message: bytes | str) -> bytes | None:
        """The answer of the same number: `hello`, `action` or `error`; none to the bounds of an episode."""
        number = 0
        try:
            if isinstance(message, str):
                raise ClientError("a text frame, expected a message as MessagePack in a binary frame")
            kind, payload, number = _opened(unpack(message))
            if kind == "hello":
                return _closed("hello", self._hello(), number)
            if kind == "observation":
                return _closed("action", {"actions": await self._action(payload)}, number)
            if kind in ("episode_start", "episode_end"):
                self._episode.begin()
                self._remaining.clear()
                return None
            if kind == "error":
                return None
            raise ClientError(
                f"type {shown(kind)}, expected hello, episode_start, observation or episode_end"
            )
        except ClientError as error:
            return _closed("error", {"error": str(error)}, number)

    async def _action(self, payload: Mapping[Any, Any]) -> NDArray[np.float64]:
        """The next action [D]."""
        instruction = check_prompt(payload, _PROMPT)
        frames = self._episode.frames_with(self._present(payload), instruction)
        state = check_state(payload, HARNESS_STATE, self._spec.embodiment) if self._spec.uses_state else None
        if not self._remaining:
            self._remaining.extend(await self._act(served_observation(instruction, frames, state)))
        self._episode.keep(frames, instruction)
        return self._remaining.popleft()

    def _present(self, payload: Mapping[Any, Any]) -> Frames:
        """The present frames of all cameras, [1, V, pixels, pixels, 3]."""
        return np.stack([self._frame(payload, camera) for camera in self._cameras])[None]

    def _frame(self, payload: Mapping[Any, Any], camera: str) -> Frame:
        images = payload.get(_IMAGES)
        key = f"{_IMAGES}.{camera}"
        if not isinstance(images, dict) or camera not in images:
            names = (
                ", ".join(sorted(map(shown, images))[:8]) if isinstance(images, dict) else describe(images)
            )
            raise ClientError(f"{key}: missing; found {names or 'nothing'}")
        image = images[camera]
        if isinstance(image, dict) and _ENCODED in image:
            image = _decoded(key, image, self._spec.pixels)
        return check_frame(key, image, self._spec.pixels)

    def _hello(self) -> dict[str, Any]:
        wanted: dict[str, bool] = {}
        if WRIST_CAMERA in self._spec.cameras:
            wanted["send_wrist_image"] = True
        if self._spec.uses_state:
            # As training data have it: where the angle passes pi, the harness's own form flips the axis.
            wanted |= {"send_state": True, "quat_no_antipodal": True}
        observed = {camera: _IMAGE_SPEC for camera in self._cameras}
        return {
            "protocol_version": PROTOCOL_VERSION,
            "model_server": "worldvla",
            "capabilities": {},
            "observation_params": wanted,
            "action_spec": self._action_spec(),
            "observation_spec": observed
            | ({"state": self._state_spec()} if self._spec.uses_state else {})
            | {"language": {"name": "language", "dims": 0, "format": "language"}},
            "policy": dict(self._metadata),
        }

    def _action_spec(self) -> dict[str, Any]:
        robot = self._spec.embodiment
        if robot.action == DEFAULT_EMBODIMENT.action:
            return _ACTION
        return {"action": {"name": "action", "dims": robot.action_dim, "format": _RAW}}

    def _state_spec(self) -> dict[str, Any]:
        robot = self._spec.embodiment
        is_default = robot.state == DEFAULT_EMBODIMENT.state
        return {
            "name": "state",
            "dims": robot.state_dim,
            "format": _STATE_FORMAT if is_default else _RAW,
        }


def _opened(message: Any) -> tuple[str, dict[Any, Any], int]:
    """Type, payload and number of a message."""
    if not isinstance(message, dict):
        raise ClientError(f"a message is {describe(message)}, expected a map")
    kind, payload, number = message.get("type"), message.get("payload"), message.get("seq")
    if not isinstance(kind, str) or not isinstance(payload, dict) or type(number) is not int:
        raise ClientError("a message has type (text), payload (a map) and seq (an integer), this one has not")
    return kind, payload, number


def _closed(kind: str, payload: Mapping[str, Any], number: int) -> bytes:
    message = {"type": kind, "payload": payload, "seq": number, "timestamp": time.time()}
    return pack(message, binary_keys=False)


def _decoded(key: str, image: Mapping[str, Any], pixels: int) -> NDArray[np.uint8]:
    """An encoded image; its size is checked before it is decompressed."""
    kind, content = image.get("format"), image.get("data")
    if not isinstance(content, bytes):
        raise ClientError(f"{key}: its data is {describe(content)}, expected bytes")
    if kind == "raw":
        return array_of(image)
    if kind != "png":
        raise ClientError(f"{key}: format {shown(kind)}, expected png or raw: others change the pixels")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
            if opened.size != (pixels, pixels) or opened.mode != "RGB":
                found = f"{opened.mode} {opened.width}x{opened.height}"
                raise ClientError(f"{key}: found a PNG of {found}, expected RGB {pixels}x{pixels}")
            return np.asarray(opened)
    except _BROKEN_IMAGE as error:
        if isinstance(error, ClientError):
            raise
        raise ClientError(f"{key}: no PNG that can be read ({shown(error)})") from error
