"""Suites without physics and policies without weights, which other processes can open by name.

The name of a suite says what goes wrong in it, always at initial state 1 of task 1:
`fake` nothing, `fake_hangs`, `fake_dies`, `fake_breaks` (once), `fake_incomplete` (no assets for task 1).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from eval.policy.expert_policy import ExpertPolicy
from eval.policy.interface import Observation, Policy
from eval.simulator.interface import Simulator, SimulatorError
from tests.support.fake_simulator import TASK, FakeSimulator

MARKS = "FAKE_SUITE_MARKS"  # environment variable: folder for what has happened once


class Troubled(FakeSimulator):
    """Does what the suite's name says."""

    def __init__(self, suite: str, task: int) -> None:
        self.task = replace(TASK, number=task, name=f"fake_{task}", suite=suite)
        self._trouble = ""
        super().__init__()

    def reset(self, initial_state: int) -> None:
        super().reset(initial_state)
        here = (self.task.number, initial_state) == (1, 1)
        self._trouble = self.task.suite.removeprefix("fake_") if here else ""

    def step(self, action: NDArray[np.float64]) -> None:
        if len(self.actions) == 3:
            if self._trouble == "hangs":
                time.sleep(600)
            if self._trouble == "dies":
                os._exit(7)
            if self._trouble == "breaks":
                mark = Path(os.environ[MARKS]) / "broken"
                if not mark.exists():
                    mark.touch()
                    raise SimulatorError("broke once")
        super().step(action)


class FakeSuite:
    """Three tasks."""

    standin_assets = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks = tuple(replace(TASK, number=i, name=f"fake_{i}", suite=name) for i in range(3))

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def open(self, task: int) -> FakeSimulator:
        if self.name == "fake_empty" or (self.name == "fake_incomplete" and task == 1):
            raise InputError(f"task {task}: an asset is missing")
        return Troubled(self.name, task)


def open_fake_suite(name: str) -> FakeSuite:
    return FakeSuite(name)


class Reaching:
    """Goes for the cube by what it sees alone: the gripper's position is in the state, the rest is noise.

    Every action depends on frames and state, so that an episode that goes another way gets other actions.
    """

    chunk, history, camera, pixels = 2, 2, "agent", 8

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def reset(self, environment: int, simulator: Simulator) -> None:
        pass

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        time.sleep(self._seconds)
        chunks = []
        for seen in observations:
            hand = seen.state[:3]
            down = hand[2] > 0.03
            towards = np.clip((np.array([0.01, 0.0, 0.02]) - hand) / 0.05, -0.5, 0.5)
            move = towards if down else np.array([0.0, 0.0, 0.8])
            wobble = 1e-3 * float(seen.frames[-1][0, 0, 0])
            chunks.append([[*(move + wobble), 0, 0, 0, -1.0 if down else 1.0]] * self.chunk)
        return np.array(chunks)


@dataclass(frozen=True)
class Source:
    """Names a policy of this file: `reaching`, `expert`, or what goes wrong with it."""

    name: str
    seconds: float = 0.0

    @property
    def served(self) -> bool:
        return self.name != "expert"

    def load(self) -> Policy:
        if self.name == "unusable":
            raise InputError("no tokenizer there")
        if self.name == "dying":
            os._exit(9)
        if self.name == "expert":
            return ExpertPolicy()
        others = {"failing": Failing, "hanging": HangingOnce}
        return others[self.name]() if self.name in others else Reaching(self.seconds)

    def identity(self) -> str:
        return self.name


class Failing(Reaching):
    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        raise ZeroDivisionError("the network fell over")


class HangingOnce(Reaching):
    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        mark = Path(os.environ[MARKS]) / "hung"
        if not mark.exists():
            mark.touch()
            time.sleep(600)
        return super().act(observations)
