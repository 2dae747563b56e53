"""What a client sends, and the checks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from eval.pool.messages import PolicySpec
from eval.serve.protocol import ClientError, describe, shown

IMAGES = {AGENT_CAMERA: "observation/image", WRIST_CAMERA: "observation/wrist_image"}
PROMPT, RESET = "prompt", "reset"
HARNESS_IMAGES = {AGENT_CAMERA: "agentview", WRIST_CAMERA: "wrist"}
MAX_PROMPT = 1000  # characters
Frame = NDArray[np.uint8]
Frames = tuple[Frame, ...]

SCHEMA_HELP = f"""\
observations:
  openpi-client, at ws://HOST:PORT: one map for each chunk of K actions, answered by `actions`, float64 [K, 7]
    {IMAGES[AGENT_CAMERA]}        the present frame, uint8 [H, W, 3], RGB, upright, H = W = pixels;
                             or the last m <= M frames, uint8 [m, H, W, 3], oldest first
    {IMAGES[WRIST_CAMERA]}  the same, of a policy of the wrist camera
    {PROMPT}                   the task in words, at most {MAX_PROMPT} characters
    {RESET}                    true at the first observation of an episode; may be left out
  vla-eval, at ws://HOST:PORT/vla-eval: one for each step, answered by one action
    images.{HARNESS_IMAGES[AGENT_CAMERA]}         the present frame, uint8 [H, W, 3], raw or as PNG
    images.{HARNESS_IMAGES[WRIST_CAMERA]}             the same, of a policy of the wrist camera
    task_description         the task in words
  The metadata sent on connect names camera, pixels, M (history) and K (chunk). Other keys are ignored.
  docs/serving.md has examples, limits and failures."""


@dataclass(frozen=True, slots=True)
class ClientObservation:
    """A checked observation of openpi-client.

    Attributes:
        instruction: The task in words.
        frames: Frames uint8 [pixels, pixels, 3] of the policy's camera, oldest first; at most M.
        has_history: Whether the client gave the history itself, in one array.
        reset: Whether an episode begins with it.
    """

    instruction: str
    frames: Frames
    has_history: bool
    reset: bool


def check_observation(message: Any, spec: PolicySpec) -> ClientObservation:
    """Check an observation of openpi-client.

    Args:
        message: As `unpack` gave it.
        spec: Camera, pixels and history of the policy.

    Raises:
        ClientError: A key is missing, or a value has another type, dtype or size than expected.
    """
    if not isinstance(message, dict):
        raise ClientError(f"an observation is {describe(message)}, expected a map of keys")
    key = IMAGES[spec.camera]
    image = _value(message, key)
    frames = _frames(key, image, spec)
    reset = message.get(RESET, False)
    if not isinstance(reset, bool | np.bool_):
        raise ClientError(f"{RESET}: found {describe(reset)}, expected true or false")
    return ClientObservation(check_prompt(message, PROMPT), frames, image.ndim == 4, bool(reset))


def check_prompt(message: Mapping[Any, Any], key: str) -> str:
    """The task in words.

    Raises:
        ClientError: It is missing, empty, too long or no text.
    """
    prompt = _value(message, key)
    if not isinstance(prompt, str):
        raise ClientError(f"{key}: found {describe(prompt)}, expected the task in words as text")
    if not prompt.strip() or len(prompt) > MAX_PROMPT:
        raise ClientError(f"{key}: found {len(prompt)} characters, expected words, at most {MAX_PROMPT}")
    return prompt


def check_frame(key: str, image: Any, pixels: int) -> Frame:
    """One frame uint8 [pixels, pixels, 3].

    Raises:
        ClientError: It has another type, dtype or size.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != (pixels, pixels, 3):
        raise ClientError(
            f"{key}: found {describe(image)}, expected uint8 {[pixels, pixels, 3]}; render at that "
            "size: nothing is resized here"
        )
    return image


def _frames(key: str, image: Any, spec: PolicySpec) -> Frames:
    side, most = spec.pixels, spec.history
    if isinstance(image, np.ndarray) and image.ndim == 4:
        if image.dtype == np.uint8 and image.shape[1:] == (side, side, 3) and 1 <= len(image) <= most:
            return tuple(image)
        raise ClientError(
            f"{key}: found {describe(image)}, expected uint8 {[side, side, 3]}, or the last m <= {most} "
            f"frames uint8 [m, {side}, {side}, 3]"
        )
    return (check_frame(key, image, side),)


def _value(message: Mapping[Any, Any], key: str) -> Any:
    if key not in message:
        found = ", ".join(sorted(map(shown, message))[:8]) or "nothing"
        raise ClientError(f"{key}: missing; found {found}")
    return message[key]
