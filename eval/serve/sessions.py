"""One client's conversation: its episode's history, and the form of its messages."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.policy.interface import Observation
from eval.pool.messages import PolicySpec
from eval.serve.observation_schema import Frames, check_observation
from eval.serve.policy_process import served_observation
from eval.serve.protocol import ClientError, pack, unpack

Act = Callable[[Observation], Awaitable[NDArray[np.float64]]]
"""Decides on an observation: actions [K, D]; raises ClientError."""


class Session(Protocol):
    """A client's conversation."""

    @property
    def greeting(self) -> bytes | None:
        """What the server sends first."""
        ...

    async def answer(self, message: bytes | str) -> bytes | str | None:
        """The answer to a message; None: it needs none. An error is an answer too."""
        ...


class Episode:
    """The frames that a client has shown in its present episode.

    Args:
        history: M, number of time steps whose frames the policy sees.
    """

    def __init__(self, history: int) -> None:
        self._length = max(1, history)
        self._instruction: str | None = None
        self._frames: Frames | None = None

    def begin(self) -> None:
        """Forget the frames: an episode begins."""
        self._frames = None

    def frames_with(self, present: Frames, instruction: str) -> Frames:
        """Those of the newest M time steps, `present` [1, V, ...] the last.

        Another instruction is another episode.
        """
        if self._frames is None or instruction != self._instruction:
            return present
        return np.concatenate([self._frames, present])[-self._length :]

    def keep(self, frames: Frames, instruction: str) -> None:
        """Remember the frames that the policy has seen; a refused observation leaves nothing behind."""
        self._frames, self._instruction = frames, instruction


class OpenpiSession:
    """A conversation with openpi-client: metadata first, then a chunk of actions for each observation.

    An error is a text frame, which the client raises as its own; the connection stays.

    Args:
        spec: What the policy observes, and its chunk.
        metadata: Sent first.
        act: Decides.
    """

    def __init__(self, spec: PolicySpec, metadata: Mapping[str, Any], act: Act) -> None:
        self._spec, self._act = spec, act
        self._episode = Episode(spec.history)
        self.greeting = pack(metadata, binary_keys=True)

    async def answer(self, message: bytes | str) -> bytes | str:
        """A map with `actions` float64 [K, D] and `server_timing`; or a text with the client's mistake."""
        started = time.perf_counter()
        try:
            actions = await self._actions(message)
        except ClientError as error:
            return str(error)
        timing = {"infer_ms": 1000 * (time.perf_counter() - started)}
        return pack({"actions": actions, "server_timing": timing}, binary_keys=True)

    async def _actions(self, message: bytes | str) -> NDArray[np.float64]:
        if isinstance(message, str):
            raise ClientError("a text frame, expected an observation as MessagePack in a binary frame")
        seen = check_observation(unpack(message), self._spec)
        if seen.reset:
            self._episode.begin()
        frames = seen.frames
        if not seen.has_history:
            frames = self._episode.frames_with(seen.frames, seen.instruction)
        actions = await self._act(served_observation(seen.instruction, frames, seen.state))
        self._episode.keep(frames, seen.instruction)
        return actions
