"""What a client sends, and the checks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA, DEFAULT_EMBODIMENT, WRIST_CAMERA, Embodiment
from eval.pool.messages import PolicySpec
from eval.serve.protocol import ClientError, describe, shown

IMAGES = {AGENT_CAMERA: "observation/image", WRIST_CAMERA: "observation/wrist_image"}
STATE, PROMPT, RESET = "observation/state", "prompt", "reset"
HARNESS_IMAGES = {AGENT_CAMERA: "agentview", WRIST_CAMERA: "wrist"}
HARNESS_STATE = "states"
MAX_PROMPT = 1000  # characters
Frame = NDArray[np.uint8]
"""One frame [pixels, pixels, 3]."""

Frames = NDArray[np.uint8]
"""Time steps, oldest first, as in `eval.policy.interface.Observation`: [m, V, pixels, pixels, 3]."""

SCHEMA_HELP = f"""\
observations:
  openpi-client, at ws://HOST:PORT: one map for each chunk of K actions, answered by `actions`, float64 [K, D]
    {IMAGES[AGENT_CAMERA]}        the present frame, uint8 [H, W, 3], RGB, upright, H = W = pixels;
                             or the last m <= M frames, uint8 [m, H, W, 3], oldest first
    {IMAGES[WRIST_CAMERA]}  the same, of a policy that has the wrist camera; as many frames
    {STATE}        of a policy that uses it, float [S]; LIBERO's 8: hand position, axis-angle, fingers
    {PROMPT}                   the task in words, at most {MAX_PROMPT} characters
    {RESET}                    true at the first observation of an episode; may be left out
  vla-eval, at ws://HOST:PORT/vla-eval: one for each step, answered by one action
    images.{HARNESS_IMAGES[AGENT_CAMERA]}         the present frame, uint8 [H, W, 3], raw or as PNG
    images.{HARNESS_IMAGES[WRIST_CAMERA]}             the same, of a policy that has the wrist camera
    {HARNESS_STATE}                   of a policy that uses it, float [S]
    task_description         the task in words
  The metadata sent on connect names cameras, pixels, M (history), K (chunk), whether the state is used
  (uses_state), and the D numbers of an action and the S of a state (embodiment). Other keys are ignored.
  docs/serving.md has examples, limits and failures."""


@dataclass(frozen=True, slots=True)
class ClientObservation:
    """A checked observation of openpi-client.

    Attributes:
        instruction: The task in words.
        frames: Frames of the policy's cameras, of at most M time steps.
        state: float64 [S]; None for a policy that does not use it.
        has_history: Whether the client gave the history itself, in one array of each camera.
        reset: Whether an episode begins with it.
    """

    instruction: str
    frames: Frames
    state: NDArray[np.float64] | None
    has_history: bool
    reset: bool


def check_observation(message: Any, spec: PolicySpec) -> ClientObservation:
    """Check an observation of openpi-client.

    Args:
        message: As `unpack` gave it.
        spec: Cameras, pixels and history of the policy, and whether it uses the state.

    Raises:
        ClientError: A key is missing, or a value has another type, dtype or size than expected.
    """
    if not isinstance(message, dict):
        raise ClientError(f"an observation is {describe(message)}, expected a map of keys")
    keys = [IMAGES[camera] for camera in spec.cameras]
    views = [_frames(key, _value(message, key), spec) for key in keys]
    first = message[keys[0]]
    for key in keys:
        if message[key].shape != first.shape:
            raise ClientError(
                f"{key}: found {describe(message[key])}, {keys[0]} is {describe(first)}; give as many frames "
                "of each camera"
            )
    state = check_state(message, STATE, spec.embodiment) if spec.uses_state else None
    reset = message.get(RESET, False)
    if not isinstance(reset, bool | np.bool_):
        raise ClientError(f"{RESET}: found {describe(reset)}, expected true or false")
    frames = np.stack(views, axis=1)
    return ClientObservation(check_prompt(message, PROMPT), frames, state, first.ndim == 4, bool(reset))


def check_state(message: Mapping[Any, Any], key: str, embodiment: Embodiment) -> NDArray[np.float64]:
    """Proprioception float64 [S], the numbers of the policy's embodiment.

    LIBERO's: hand position, axis-angle of the hand, finger positions.

    Raises:
        ClientError: It is missing, no array of S floats, or not finite.
    """
    width = embodiment.state_dim
    state = _value(message, key)
    if not isinstance(state, np.ndarray) or state.dtype.kind != "f" or state.shape != (width,):
        raise ClientError(
            f"{key}: found {describe(state)}, expected float [{width}]: {_state_text(embodiment)}"
        )
    if not np.isfinite(state).all():
        raise ClientError(f"{key}: a number is not finite, expected finite ones")
    return state.astype(np.float64)


def _state_text(embodiment: Embodiment) -> str:
    if embodiment.state == DEFAULT_EMBODIMENT.state:
        return "position of the hand, axis times angle, two finger positions"
    return ", ".join(embodiment.state)


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


def _frames(key: str, image: Any, spec: PolicySpec) -> NDArray[np.uint8]:
    """The frames of one camera, [m, pixels, pixels, 3]."""
    side, most = spec.pixels, spec.history
    if isinstance(image, np.ndarray) and image.ndim == 4:
        if image.dtype == np.uint8 and image.shape[1:] == (side, side, 3) and 1 <= len(image) <= most:
            return image
        raise ClientError(
            f"{key}: found {describe(image)}, expected uint8 {[side, side, 3]}, or the last m <= {most} "
            f"frames uint8 [m, {side}, {side}, 3]"
        )
    return check_frame(key, image, side)[None]


def _value(message: Mapping[Any, Any], key: str) -> Any:
    if key not in message:
        found = ", ".join(sorted(map(shown, message))[:8]) or "nothing"
        raise ClientError(f"{key}: missing; found {found}")
    return message[key]
