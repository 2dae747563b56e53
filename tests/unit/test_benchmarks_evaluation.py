"""The evaluation benchmark: its given actions, and what it refuses."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.evaluation import main
from benchmarks.evaluation_peers import check_vla_eval
from benchmarks.evaluation_policies import GivenActionsSource, given_actions
from data.errors import InputError


def test_given_actions_are_answered_in_chunks_from_the_start_of_each_episode() -> None:
    policy = GivenActionsSource(steps=12).load()
    simulator: Any = SimpleNamespace(task=SimpleNamespace(number=3))
    expected = given_actions(3, 12)
    assert expected.shape == (15, 7), "whole chunks"
    assert set(expected[:, 6]) == {-1.0}
    assert np.abs(expected - given_actions(4, 12)).max() > 0.1
    for _ in range(2):
        policy.reset(0, simulator)
        chunks = [policy.act([])[0] for _ in range(3)]
        np.testing.assert_array_equal(np.concatenate(chunks), expected)


def test_vla_eval_is_refused_where_it_cannot_run_the_same_episodes() -> None:
    with pytest.raises(InputError, match=r"--vla-eval runs libero_spatial.*--policy given"):
        main(["--suite", "robosuite_lift", "--smoke", "--vla-eval", sys.executable])


def test_an_interpreter_without_vla_eval_is_refused() -> None:
    with pytest.raises(InputError, match=r"--vla-eval .*NotFoundError.*a Python with vla-eval"):
        check_vla_eval(sys.executable)
