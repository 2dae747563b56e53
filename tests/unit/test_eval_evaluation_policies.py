"""Policies that cannot be used, or no longer: one line, and no finished episode is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import InputError
from eval.evaluation.evaluate import EvaluationProgress
from eval.policy.interface import PolicyRecord
from tests.support.fake_suite import MARKS, FakePolicySource, put_back, vanished
from tests.unit.test_eval_evaluation_evaluate import essence, run


def test_a_checkpoint_that_is_removed_meanwhile_costs_no_finished_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARKS, str(tmp_path))
    undisturbed = run(tmp_path / "other", policy="reaching", videos=0)
    with pytest.raises(InputError) as raised:
        run(tmp_path / "out", policy="vanishing", videos=0)
    assert str(raised.value) == (
        "checkpoint=step_1: no checkpoint of a run there; another policy server had loaded it before: it was "
        "removed or changed meanwhile. Put it back, and the same command continues after the finished "
        "episodes"
    )
    vanished().rename(put_back())
    reported: list[EvaluationProgress] = []
    results = run(tmp_path / "out", reported.append, policy="vanishing", videos=0)
    assert [state.done for state in reported] == [1, 2, 3, 4]
    assert essence(results) == essence(undisturbed)


def test_a_chunk_longer_than_the_horizon_is_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakePolicySource, "record", lambda self: PolicyRecord({"chunk": 5}))
    with pytest.raises(
        InputError, match=r"in chunks of 5 steps, longer than the horizon of 4; raise horizon"
    ):
        run(tmp_path / "out", horizon=4)
    assert list(tmp_path.iterdir()) == []
    assert len(run(tmp_path / "out", horizon=5).episodes) == 4
