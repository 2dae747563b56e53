"""Which failed trainings are restarted, and when."""

from __future__ import annotations

import pytest

from cluster.config import ClusterConfig
from cluster.failures import CommandFailedError, TrainingFailedError
from cluster.run.restarts import RestartPolicy

KILLED = TrainingFailedError("a training process ended without an error message")


def failed(text: str = "ValueError: odd", kind: str = "ValueError") -> TrainingFailedError:
    return TrainingFailedError(f"rank_00001 failed: {text}; its traceback is in rank_00001.log", kind, text)


def policy(restarts: int = 5, delay: float = 2.0) -> RestartPolicy:
    return RestartPolicy(ClusterConfig(restarts=restarts, restart_delay=delay))


def test_delays_double_and_are_reset_by_progress() -> None:
    decide = policy()
    assert [decide.delay_after(KILLED, step=7, newest_checkpoint=4) for _ in range(3)] == [2, 4, 8]
    assert [decide.delay_after(KILLED, step=9, newest_checkpoint=8) for _ in range(2)] == [2, 4]
    assert decide.total == 5
    generous = policy(restarts=20)
    assert max(generous.delay_after(KILLED, 7, 4) for _ in range(20)) == 300


def test_restarts_without_progress_are_limited() -> None:
    decide = policy(restarts=3)
    for _ in range(3):
        decide.delay_after(KILLED, step=7, newest_checkpoint=4)
    with pytest.raises(
        CommandFailedError, match=r"^3 restarts without a checkpoint beyond step 4 .*a training"
    ):
        decide.delay_after(KILLED, step=7, newest_checkpoint=4)


def test_the_same_failure_after_the_same_step_three_times_ends_the_run() -> None:
    decide = policy()
    decide.delay_after(failed(), step=7, newest_checkpoint=4)
    decide.delay_after(failed(), step=7, newest_checkpoint=4)
    with pytest.raises(
        CommandFailedError, match=r"3 times in the same way after step 7: rank_00001 failed: Val"
    ):
        decide.delay_after(failed(), step=7, newest_checkpoint=4)


@pytest.mark.parametrize(
    "between",
    [(failed("ValueError: other"), 7), (failed(), 8), (failed(), 6)],
    ids=["error", "later", "earlier"],
)
def test_another_error_or_another_step_is_not_the_same_failure(
    between: tuple[TrainingFailedError, int],
) -> None:
    decide = policy()
    decide.delay_after(failed(), step=7, newest_checkpoint=4)
    decide.delay_after(failed(), step=7, newest_checkpoint=4)
    decide.delay_after(*between, newest_checkpoint=4)
    assert decide.delay_after(failed(), step=7, newest_checkpoint=4) == 16


@pytest.mark.parametrize(
    ("failure", "restarts"), [(KILLED, 0), (failed("DivergedError: spike", "DivergedError"), 5)]
)
def test_no_restart_where_it_is_disabled_or_would_not_help(
    failure: TrainingFailedError, restarts: int
) -> None:
    with pytest.raises(TrainingFailedError) as caught:
        policy(restarts).delay_after(failure, step=7, newest_checkpoint=4)
    assert caught.value is failure
