"""Which failed trainings are started again, and when."""

from __future__ import annotations

import pytest

from cluster.config import ClusterConfig
from cluster.failures import CommandFailedError, TrainingFailedError
from cluster.run.restarts import RestartPolicy

KILLED = TrainingFailedError("a training process ended without a word of its own")


def wrong(text: str = "ValueError: odd", kind: str = "ValueError") -> TrainingFailedError:
    return TrainingFailedError(f"rank_00001 failed: {text}; its traceback is in rank_00001.log", kind, text)


def policy(restarts: int = 5, delay: float = 2.0) -> RestartPolicy:
    return RestartPolicy(ClusterConfig(restarts=restarts, restart_delay=delay))


def test_delays_double_and_begin_anew_with_progress() -> None:
    decide = policy()
    assert [decide.after(KILLED, step=7, newest=4) for _ in range(3)] == [2, 4, 8]
    assert [decide.after(KILLED, step=9, newest=8) for _ in range(2)] == [2, 4]
    assert decide.total == 5
    patient = policy(restarts=20)
    assert max(patient.after(KILLED, 7, 4) for _ in range(20)) == 300


def test_a_budget_without_progress_ends() -> None:
    decide = policy(restarts=3)
    for _ in range(3):
        decide.after(KILLED, step=7, newest=4)
    with pytest.raises(
        CommandFailedError, match=r"^3 restarts without a checkpoint beyond step 4 .*a training"
    ):
        decide.after(KILLED, step=7, newest=4)


def test_the_same_failure_after_the_same_step_three_times_is_told() -> None:
    decide = policy()
    decide.after(wrong(), step=7, newest=4)
    decide.after(wrong(), step=7, newest=4)
    with pytest.raises(
        CommandFailedError, match=r"3 times in the same way after step 7: rank_00001 failed: Val"
    ):
        decide.after(wrong(), step=7, newest=4)


@pytest.mark.parametrize(
    "between",
    [(wrong("ValueError: other"), 7), (wrong(), 8), (wrong(), 6)],
    ids=["error", "later", "earlier"],
)
def test_another_error_or_another_step_is_not_the_same_failure(
    between: tuple[TrainingFailedError, int],
) -> None:
    decide = policy()
    decide.after(wrong(), step=7, newest=4)
    decide.after(wrong(), step=7, newest=4)
    decide.after(*between, newest=4)
    assert decide.after(wrong(), step=7, newest=4) == 16


@pytest.mark.parametrize(
    ("failure", "restarts"), [(KILLED, 0), (wrong("DivergedError: spike", "DivergedError"), 5)]
)
def test_no_restart_where_none_is_wanted_or_none_helps(failure: TrainingFailedError, restarts: int) -> None:
    with pytest.raises(TrainingFailedError) as caught:
        policy(restarts).after(failure, step=7, newest=4)
    assert caught.value is failure
