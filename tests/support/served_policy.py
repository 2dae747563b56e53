"""A policy that is served without a process of its own, and clients of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openpi_client import msgpack_numpy

from eval.config import ServeConfig
from eval.policy.interface import Observation
from eval.pool.messages import PolicySpec, TimeLimits
from eval.serve.access import bind
from eval.serve.batching import Batcher
from eval.serve.policy_process import Answer, PolicyProcess
from eval.serve.server import WebSocketServer
from tests.support.fake_suite import FakePolicySource

SPEC = PolicySpec(chunk=3, history=2, cameras=("agent",), pixels=8, uses_state=False)


def frame(value: int) -> NDArray[np.uint8]:
    """A frame of the policy's size, told by its value."""
    return np.full((SPEC.pixels, SPEC.pixels, 3), value, np.uint8)


def chunk_of(*values: int) -> NDArray[np.float64]:
    """The chunk for frames of these values: the values, and the number of the row."""
    chunk = np.zeros((SPEC.chunk, 7))
    chunk[:, : len(values)] = values
    chunk[:, 6] = np.arange(SPEC.chunk)
    return chunk


def values_of(observation: Observation) -> list[int]:
    """The values of an observation's frames, time step by time step."""
    return [int(value) for value in observation.frames[..., 0, 0, 0].ravel()]


class HeldPolicy(PolicyProcess):
    """Answers with `chunk_of` the frames, in this process; records its batches."""

    def __init__(self) -> None:
        super().__init__(FakePolicySource("reaching"), TimeLimits())
        self.batches: list[list[str]] = []  # instructions
        self.is_ready = True

    def ask(self, observations: Sequence[Observation]) -> list[Answer]:
        self.batches.append([observation.instruction for observation in observations])
        return [self.answer(observation) for observation in observations]

    def answer(self, observation: Observation) -> Answer:
        return chunk_of(*values_of(observation))


@asynccontextmanager
async def served(
    process: PolicyProcess, clients: int = 8, idle_seconds: float = 600.0, token: str | None = None
) -> AsyncIterator[tuple[int, Batcher]]:
    """Serve a policy on a free port of this machine; yields the port and what decides."""
    batcher = Batcher(process, batch=4)
    server = WebSocketServer(SPEC, {"policy": "held"}, process, batcher, clients, idle_seconds, token)
    with bind(ServeConfig(port=0), has_token=False) as bound:
        listening = await server.listen(bound)
        running = asyncio.create_task(batcher.run())
        try:
            yield bound.getsockname()[1], batcher
        finally:
            await server.close(listening, "the test ends")
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            batcher.close()


def packed(message: Any) -> bytes:
    """A message as openpi-client packs it."""
    written = msgpack_numpy.packb(message)
    assert written is not None
    return written


def observation(value: int = 1, prompt: str = "lift", **others: Any) -> dict[str, Any]:
    """An observation as openpi-client sends it."""
    return {"observation/image": frame(value), "prompt": prompt, **others}
