"""Suites without physics and policies without weights, which other processes can open by name.

The name of a suite says what goes wrong in it, always at initial state 1 of task 1:
`fake` nothing, `fake_hangs`, `fake_dies`, `fake_breaks` (once), `fake_incomplete` (no assets for task 1);
`fake_empty` has no assets at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import DEFAULT_EMBODIMENT, WRIST_CAMERA
from data.errors import InputError
from eval.config import Observations, Reset
from eval.policy.expert_policy import ExpertPolicy
from eval.policy.interface import Observation, Policy, PolicyRecord
from eval.simulator.interface import Simulator, SimulatorError
from tests.support.fake_simulator import TASK, FakeSimulator

WRIST_OFFSET = 100  # of the wrist camera's pixels, which else are the number of the step
MARKS = "FAKE_SUITE_MARKS"  # environment variable: folder for files that record what has happened
_FOREVER = 600.0  # seconds, longer than any test


def hung_marker(folder: Path, pid: int) -> Path:
    """File that a process writes just before it hangs."""
    return folder / f"hung_{pid}"


def _hang() -> None:
    if MARKS in os.environ:
        hung_marker(Path(os.environ[MARKS]), os.getpid()).touch()
    time.sleep(_FOREVER)


class FaultySimulator(FakeSimulator):
    """Fails in the way that the suite's name says."""

    def __init__(self, suite: str, task: int) -> None:
        self.task = replace(TASK, number=task, name=f"fake_{task}", suite=suite)
        self._fault = ""
        super().__init__()

    def reset(self, initial_state: int) -> None:
        super().reset(initial_state)
        is_faulty = (self.task.number, initial_state) == (1, 1)
        self._fault = self.task.suite.removeprefix("fake_") if is_faulty else ""

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        return super().render(camera, pixels) + np.uint8(WRIST_OFFSET * (camera == WRIST_CAMERA))

    def step(self, action: NDArray[np.float64]) -> None:
        if len(self.actions) == 3:
            if self._fault == "hangs":
                _hang()
            if self._fault == "dies":
                os._exit(7)
            if self._fault == "breaks":
                mark = Path(os.environ[MARKS]) / "broken"
                if not mark.exists():
                    mark.touch()
                    raise SimulatorError("broke once")
        super().step(action)


class FakeSuite:
    """Three tasks."""

    standin_assets = True
    default_reset: Reset = "soft"
    notes: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks = tuple(replace(TASK, number=i, name=f"fake_{i}", suite=name) for i in range(3))

    def renderer(self) -> str:
        return "none"

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def open(
        self, task: int, observations: Observations = "recomputed", reset: Reset | None = None
    ) -> FakeSimulator:
        if self.name == "fake_empty" or (self.name == "fake_incomplete" and task == 1):
            raise InputError(f"task {task}: an asset is missing")
        return FaultySimulator(self.name, task)


def open_fake_suite(name: str) -> FakeSuite:
    return FakeSuite(name)


class ReachingPolicy:
    """Reaches for the cube by the gripper's position in the observed state; the frames add noise.

    Every action depends on the frames of both cameras and on the state, so that episodes which differ
    anywhere have other actions.
    """

    chunk, history, cameras, pixels = 2, 2, ("agent", "wrist"), 8
    uses_state = True
    embodiment = DEFAULT_EMBODIMENT

    def reset(self, environment: int, simulator: Simulator) -> None:
        pass

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        chunks = []
        for observation in observations:
            assert observation.state is not None
            hand = observation.state[:3]
            is_above = hand[2] > 0.03
            descent = np.clip((np.array([0.01, 0.0, 0.02]) - hand) / 0.05, -0.5, 0.5)
            move = descent if is_above else np.array([0.0, 0.0, 0.8])
            values = observation.frames[:, :, 0, 0, 0].ravel().astype(float)
            noise = 1e-3 * values[-len(self.cameras)] + 1e-6 * float(values @ np.arange(1, 1 + len(values)))
            chunks.append([[*(move + noise), 0, 0, 0, -1.0 if is_above else 1.0]] * self.chunk)
        return np.array(chunks)


class FailingPolicy(ReachingPolicy):
    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        raise ZeroDivisionError("the network fell over")


class HangingPolicy(ReachingPolicy):
    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        _hang()
        return super().act(observations)


class PolicyHangingOnce(ReachingPolicy):
    """Hangs at the first observation, unless another process already has."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        if not list(Path(os.environ[MARKS]).glob("hung_*")):
            _hang()
        return super().act(observations)


class VanishingPolicy(ReachingPolicy):
    """Answers eight times; then what it was loaded from is removed (unless put back) and its process dies."""

    answers = 0

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        self.answers += 1
        if self.answers > 8 and not put_back().exists():
            vanished().touch()
            os._exit(9)
        return super().act(observations)


def vanished() -> Path:
    """File that is there while `VanishingPolicy` cannot be loaded."""
    return Path(os.environ[MARKS]) / "vanished"


def put_back() -> Path:
    """The name to give `vanished()`, so that the policy can be loaded again."""
    return Path(os.environ[MARKS]) / "put back"


_POLICIES = {
    "reaching": ReachingPolicy,
    "failing": FailingPolicy,
    "hanging": HangingPolicy,
    "hanging_once": PolicyHangingOnce,
    "vanishing": VanishingPolicy,
    "expert": ExpertPolicy,
}


@dataclass(frozen=True)
class FakePolicySource:
    """Refers to a policy of this file by its name; `unusable` and `dying` ones fail when they are loaded."""

    name: str
    precision: str | None = None
    decoder: str | None = None
    settings: Mapping[str, Any] | None = None

    @property
    def uses_server(self) -> bool:
        return self.name != "expert"

    def load(self) -> Policy:
        if self.name == "unusable":
            raise InputError("no tokenizer there")
        if self.name == "vanishing" and vanished().exists():
            raise InputError("checkpoint=step_1: no checkpoint of a run there")
        if self.name == "dying":
            os._exit(9)
        return _POLICIES[self.name]()

    def identity(self) -> str:
        return self.name

    def record(self) -> PolicyRecord:
        return PolicyRecord(self.settings, precision=self.precision, decoder=self.decoder)
