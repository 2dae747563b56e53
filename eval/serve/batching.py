"""Observations of concurrent clients, decided on in batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.policy.interface import Observation
from eval.serve.policy_process import Answer, PolicyLostError, PolicyProcess
from eval.serve.protocol import ClientError

_Result = TypeVar("_Result")


@dataclass(eq=False, slots=True)
class _Waiting:
    """An observation that has no answer yet.

    Attributes:
        observation: The observation.
        answer: Receives its answer.
        alone: Whether it is decided on alone: a batch with it has failed.
    """

    observation: Observation
    answer: asyncio.Future[NDArray[np.float64]]
    alone: bool = False


class Batcher:
    """Gives the policy, whenever it is free, the observations that wait, in the order of their arrival.

    It does not wait for a batch to fill: while one is decided on, the next gathers.

    Args:
        process: The policy, loaded.
        batch: Maximum number of observations at once.
    """

    def __init__(self, process: PolicyProcess, batch: int) -> None:
        self._process, self._batch = process, batch
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "policy")

    async def act(self, observation: Observation) -> NDArray[np.float64]:
        """Actions [K, 7]; cancelling the call takes the observation out.

        Raises:
            ClientError: The policy refuses the observation, or was lost at it.
        """
        waiting = _Waiting(observation, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answer

    async def in_thread(self, call: Callable[[], _Result]) -> _Result:
        """The result of a call to the policy's process, made in the thread that makes all of them."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def run(self) -> None:
        """Answer observations until cancelled.

        Raises:
            InputError: The policy can be used no longer, as for `PolicyProcess.ask`.
        """
        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                continue
            observations = [waiting.observation for waiting in batch]
            try:
                answers = await self.in_thread(lambda chosen=observations: self._process.ask(chosen))
            except PolicyLostError as error:
                self._lose(batch, str(error))
            else:
                for waiting, answer in zip(batch, answers, strict=True):
                    _resolve(waiting, answer)

    def close(self) -> None:
        """End the policy's process and its thread."""
        self._process.stop()
        self._thread.shutdown(cancel_futures=True)
        self._process.close()

    def _next_batch(self) -> list[_Waiting]:
        """Take the next observations; those whose client has gone are left out."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._batch:
            if self._waiting[0].answer.done():
                self._waiting.popleft()
                continue
            if self._waiting[0].alone and batch:
                break
            batch.append(self._waiting.popleft())
            if batch[-1].alone:
                break
        return batch

    def _lose(self, batch: list[_Waiting], reason: str) -> None:
        """A batch without an answer: each observation is tried once more, alone, and only then fails."""
        text = f"the policy was lost twice at this observation ({reason}) and is loaded again"
        for waiting in reversed(batch):
            if waiting.alone:
                _resolve(waiting, text)
            else:
                waiting.alone = True
                self._waiting.appendleft(waiting)


def _resolve(waiting: _Waiting, answer: Answer) -> None:
    if waiting.answer.done():  # its client has gone
        return
    if isinstance(answer, str):
        waiting.answer.set_exception(ClientError(answer))
    else:
        waiting.answer.set_result(answer)
