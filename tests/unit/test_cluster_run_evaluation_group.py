"""What an evaluation's process does, in a process of its own and without Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from cluster.run.evaluation_group import EvaluationJob, EvaluationWorker, Progress
from cluster.run.worker_process import read_failures
from data.errors import InputError
from eval.config import EvaluationConfig

NAME = "eval_00000007"


def job(folder: Path) -> EvaluationJob:
    return EvaluationJob(7, "checkpoint", folder / "out", EvaluationConfig())


def report_folder_and_progress(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    print("evaluating step", job.step, flush=True)
    progress(2, 3)
    return {"folder": os.getcwd()}


def fail(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    raise InputError("no such checkpoint")


def evaluate(folder: Path, working_folder: str, body: Any = report_folder_and_progress) -> Mapping[str, Any]:
    """In another process: results of the worker, and its progress at the end."""
    os.chdir("/")
    worker = EvaluationWorker(body, folder, NAME, working_folder)
    assert worker.progress() == (0, 0)
    return {**worker.evaluate(job(folder)), "progress": worker.progress()}


def in_a_process(*arguments: Any) -> Mapping[str, Any]:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(evaluate, *arguments).result()


def test_a_worker_evaluates_in_the_folder_of_the_command(tmp_path: Path) -> None:
    """A node of an existing cluster starts its processes in the folder in which it was started itself."""
    results = in_a_process(tmp_path, str(tmp_path))
    assert results == {"folder": str(tmp_path), "progress": (2, 3)}
    assert (tmp_path / f"{NAME}.log").read_text() == "evaluating step 7\n"
    assert read_failures(tmp_path, NAME) == []


def test_a_worker_stays_in_its_folder_where_that_of_the_command_is_missing(tmp_path: Path) -> None:
    assert in_a_process(tmp_path, "/not/on/this/machine")["folder"] == "/"


def test_a_failed_evaluation_leaves_traceback_and_failure_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        in_a_process(tmp_path, str(tmp_path), fail)
    assert "Traceback" in (tmp_path / f"{NAME}.log").read_text()
    (failure,) = read_failures(tmp_path, "eval_*")
    assert (failure.name, failure.user_mistake) == (NAME, True)
    assert failure.headline == "InputError: no such checkpoint"
