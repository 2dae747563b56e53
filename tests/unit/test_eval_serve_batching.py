"""Batches of concurrent clients, and a policy that is lost with some of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from data.errors import InputError
from eval.policy.interface import Observation
from eval.serve.batching import Batcher
from eval.serve.policy_process import Answer, PolicyLostError, served_observation
from eval.serve.protocol import ClientError
from tests.support.served_policy import HeldPolicy, chunk_of, frame


def shown(number: int, prompt: str = "") -> Observation:
    return served_observation(prompt or f"task {number}", frame(number)[None, None])


async def answered(process: HeldPolicy, observations: Sequence[Observation]) -> list[object]:
    """What each observation gets, all of them at once, in batches of at most 4."""
    batcher = Batcher(process, batch=4)
    running = asyncio.create_task(batcher.run())
    try:
        return await asyncio.gather(*map(batcher.act, observations), return_exceptions=True)
    finally:
        running.cancel()
        batcher.close()


def test_waiting_observations_are_decided_on_together_and_each_gets_its_own_answer() -> None:
    process = HeldPolicy()
    results = asyncio.run(answered(process, [shown(number) for number in range(6)]))
    np.testing.assert_array_equal(results, [chunk_of(number) for number in range(6)])
    assert [len(batch) for batch in process.batches] == [4, 2]


class Refusing(HeldPolicy):
    def answer(self, observation: Observation) -> Answer:
        return "too long" if "long" in observation.instruction else super().answer(observation)


def test_a_refused_observation_costs_the_others_of_its_batch_nothing() -> None:
    results = asyncio.run(answered(Refusing(), [shown(1), shown(2, "long"), shown(3)]))
    assert isinstance(results[1], ClientError)
    assert str(results[1]) == "too long"
    np.testing.assert_array_equal([results[0], results[2]], [chunk_of(1), chunk_of(3)])


class Dying(HeldPolicy):
    def ask(self, observations: Sequence[Observation]) -> list[Answer]:
        answers = super().ask(observations)
        if any("deadly" in observation.instruction for observation in observations):
            raise PolicyLostError("SIGKILL")
        return answers


def test_only_the_observation_that_the_policy_dies_of_fails() -> None:
    process = Dying()
    results = asyncio.run(answered(process, [shown(1), shown(2, "deadly"), shown(3), shown(4), shown(5)]))
    assert isinstance(results[1], ClientError)
    assert "lost twice at this observation (SIGKILL) and is loaded again" in str(results[1])
    for number in (1, 3, 4, 5):
        np.testing.assert_array_equal(results[number - 1], chunk_of(number))  # type: ignore[arg-type]
    assert [len(batch) for batch in process.batches] == [4, 1, 1, 1, 1, 1]


class Gone(HeldPolicy):
    def ask(self, observations: Sequence[Observation]) -> list[Answer]:
        raise InputError("the checkpoint is not there")


def test_a_policy_that_cannot_be_loaded_again_ends_the_batches() -> None:
    async def run() -> None:
        batcher = Batcher(Gone(), batch=4)
        waiting = asyncio.create_task(batcher.act(shown(1)))
        try:
            with pytest.raises(InputError, match="the checkpoint is not there"):
                await batcher.run()
        finally:
            waiting.cancel()
            batcher.close()

    asyncio.run(run())


def test_the_observation_of_a_client_that_has_gone_is_not_decided_on() -> None:
    async def run() -> list[list[str]]:
        process = HeldPolicy()
        batcher = Batcher(process, batch=4)
        calls = [asyncio.create_task(batcher.act(shown(number))) for number in range(3)]
        await asyncio.sleep(0)  # they wait
        calls[1].cancel()
        await asyncio.sleep(0)
        running = asyncio.create_task(batcher.run())
        await asyncio.gather(*calls, return_exceptions=True)
        running.cancel()
        batcher.close()
        return process.batches

    assert asyncio.run(run()) == [["task 0", "task 2"]]
