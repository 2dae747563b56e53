"""Which of several causes explains the failure of a group of ranks."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
import ray.exceptions

from cluster.failures import TrainingFailedError
from cluster.run import rank_failures
from cluster.run.rank_failures import exceptions_of_ranks, explain_failure, log_sizes
from cluster.run.worker_process import FailureRecord, remove_failures, write_failure
from data.errors import InputError
from pretrain.checkpoint.ready import DamagedCheckpointError
from pretrain.faults.exit_codes import PreemptedError
from pretrain.run_layout import rank_name


def record(logs: Path, rank: int, time: float, error: Exception) -> None:
    """Write the failure record of a rank with a given time."""
    name = rank_name(rank)
    write_failure(logs, name, error)
    path = logs / f"{name}.failure.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "time": time}))


def explain(logs: Path, ranks: int = 4) -> InputError | TrainingFailedError:
    return explain_failure(logs, "what Ray says", ranks, {})


def test_the_first_failure_that_is_no_consequence_is_named(tmp_path: Path) -> None:
    record(tmp_path, 0, 1.0, RuntimeError("Connection closed by peer [127.0.0.1]"))
    record(tmp_path, 2, 3.0, ValueError("later"))
    record(tmp_path, 1, 2.0, ValueError("batch 3 is odd\nand more"))
    error = explain(tmp_path)
    assert isinstance(error, TrainingFailedError)
    assert (error.kind, error.headline) == ("ValueError", "ValueError: batch 3 is odd")
    name = rank_name(1)
    assert str(error) == (
        f"{name} failed: ValueError: batch 3 is odd; its traceback is in {tmp_path / name}.log"
    )


def test_a_users_mistake_keeps_its_message_and_class(tmp_path: Path) -> None:
    record(tmp_path, 0, 1.0, ValueError("earlier"))
    record(tmp_path, 1, 2.0, InputError("no such shard"))
    assert type(explain(tmp_path)) is InputError
    assert str(explain(tmp_path)) == "no such shard"
    record(tmp_path, 1, 2.0, DamagedCheckpointError("step_00000002 is damaged"))
    assert type(explain(tmp_path)) is DamagedCheckpointError


def test_ranks_without_an_error_message_are_named(tmp_path: Path) -> None:
    record(tmp_path, 0, 1.0, RuntimeError("gloo: peer is gone"))
    message = str(explain(tmp_path, ranks=6))
    silent = ", ".join(map(rank_name, (1, 2, 3)))
    assert message.startswith(f"{silent} and 2 more ended without an error message")
    assert (tmp_path / "ray.log").read_text() == "what Ray says\n"
    remove_failures(tmp_path, "rank_*")
    assert re.search(r"^a training process ended without an error message", str(explain(tmp_path)))


def test_a_rank_that_stopped_on_request_is_no_cause(tmp_path: Path) -> None:
    record(tmp_path, 0, 1.0, PreemptedError("stopped"))
    assert str(explain(tmp_path)).startswith("a training process ended without")


def test_log_sizes_are_by_name(tmp_path: Path) -> None:
    (tmp_path / f"{rank_name(3)}.log").write_text("12345")
    assert log_sizes(tmp_path) == {rank_name(3): 5}


def test_hung_ranks_are_explained_by_what_their_watchdogs_wrote_since_this_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rank_failures, "cause_of_end", lambda log: "no step has finished" if "HUNG" in log else None
    )
    for rank in range(2):
        (tmp_path / f"{rank_name(rank)}.log").write_text("HUNG")
    before = log_sizes(tmp_path)
    assert str(explain_failure(tmp_path, "", 2, before)).startswith("a training process ended without")
    with (tmp_path / f"{rank_name(1)}.log").open("a") as log:
        log.write(" HUNG again")
    error = explain_failure(tmp_path, "", 2, before)
    assert isinstance(error, TrainingFailedError)
    assert (error.kind, error.headline) == ("Hang", f"no step has finished; {rank_name(0)} did not answer")
    record(tmp_path, 0, 1.0, RuntimeError("Connection closed by peer"))  # rank 1 was ended before it
    answered = explain_failure(tmp_path, "", 2, before)
    assert isinstance(answered, TrainingFailedError)
    assert answered.headline == "no step has finished"
    assert str(error).endswith(f"; the stacks of all threads are in {tmp_path}/rank_*.log")


def test_a_headline_without_message_is_the_class() -> None:
    assert FailureRecord("rank", 0.0, False, "KeyError", " \n").headline == "KeyError"


@pytest.mark.parametrize("content", ["", '{"name": "rank_00000"', "[]", '{"name": 1}', "\0"])
def test_a_record_that_is_none_is_left_out(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{rank_name(0)}.failure.json").write_text(content)
    record(tmp_path, 1, 2.0, ValueError("batch 3 is odd"))
    assert "rank_00001 failed: ValueError: batch 3 is odd" in str(explain(tmp_path))
    assert f"{rank_name(0)}.failure.json: is no failure record" in caplog.text


def test_a_record_that_the_disk_refuses_leaves_nothing_and_is_told_by_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as disk:
        disk.setattr("data.files._flush", full)
        assert not write_failure(tmp_path, rank_name(0), error)
        assert list(tmp_path.iterdir()) == []
        disk.setattr(Path, "write_text", full)
        killed = ray.exceptions.RayActorError()
        told = exceptions_of_ranks({1: killed, 0: error})
        assert told == {0: error}
        explained = explain_failure(tmp_path, "what Ray says", 2, {}, told)
        assert "rank_00000 failed: OSError: [Errno 28] No space left on device" in str(explained)
        silent = explain_failure(tmp_path, "what Ray says", 2, {}, exceptions_of_ranks({0: killed}))
        assert str(silent).startswith("a training process ended without an error message")
    assert isinstance(explained, TrainingFailedError)
    assert explained.kind is None, "no diagnosis after three times: there may be room at the next start"
    assert write_failure(tmp_path, rank_name(0), ValueError("in time"))
    assert "ValueError: in time" in str(explain_failure(tmp_path, "", 2, {}, told)), "the record comes first"
