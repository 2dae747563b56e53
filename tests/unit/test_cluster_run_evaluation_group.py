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


def report_gpus(job: EvaluationJob, progress: Progress) -> dict[str, Any]:
    return {"visible": os.environ["CUDA_VISIBLE_DEVICES"], "niceness": os.nice(0)}


def gpus_seen(folder: Path, gpus: float) -> tuple[str, int]:
    """In another process: the GPUs that the worker sees, and how much nicer than before it is."""
    before = os.nice(0)
    os.environ["CUDA_VISIBLE_DEVICES"] = "3"  # Ray hides none from an actor that asks for none
    worker = EvaluationWorker(report_gpus, folder, NAME, str(folder), gpus)
    results = worker.evaluate(job(folder))
    return results["visible"], results["niceness"] - before


def test_an_evaluation_sees_a_gpu_only_if_it_was_given_one(tmp_path: Path) -> None:
    """Without one it computes on the CPUs, where a training beside it goes first."""
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        seen = [pool.submit(gpus_seen, tmp_path, gpus).result() for gpus in (0.0, 0.5)]
    assert seen == [("", min(10, 19 - os.nice(0))), ("3", 0)]


@pytest.mark.parametrize(("gpus", "device"), [(0.0, "cpu"), (0.5, "cuda"), (1.0, "cuda")])
def test_the_policy_computes_where_it_was_placed(
    gpus: float, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a machine with GPUs: they are the training's."""
    import torch

    import eval.evaluation.evaluate as evaluation
    import eval.open_loop.compare as open_loop
    import eval.policy.checkpoint_policy as policies
    import eval.world_model.imagine as world_model
    import pretrain.checkpoint.fetch as fetch
    from cluster.run.worker_entry_points import evaluate_checkpoint

    devices: list[Any] = []
    chosen: list[Any] = []

    class Measured:
        def to_json(self) -> dict[str, Any]:
            return {}

        def summary(self) -> dict[str, float]:
            return {}

    def load_policy(path: Path, device: Any, batch: int, exported: Any, **options: Any) -> None:
        devices.append((device, options["precision"]))
        chosen.append(tuple(options[name] for name in ("decoder", "embodiment", "in_simulator", "weights")))

    def evaluate(policy: Any, *arguments: Any, **options: Any) -> Measured:
        policy.load()
        return Measured()

    def imagine(config: Any, device: Any) -> Measured:
        devices.append((device, config.precision))
        return Measured()

    def compare(policy: Any, out: Path, episodes: int) -> Measured:
        policy.load()
        chosen.append(episodes)
        return Measured()

    monkeypatch.setattr(open_loop, "compare_open_loop", compare)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fetch, "local_checkpoint", lambda url, run: Path(url))
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(policies, "CheckpointPolicy", load_policy)
    monkeypatch.setattr(world_model, "imagine", imagine)
    settings = EvaluationConfig(gpus=gpus, imagine_frames=2, precision="bf16", decoder="discrete")
    settings.embodiment, settings.weights = "libero", "trained"
    evaluate_checkpoint(EvaluationJob(7, "checkpoint", tmp_path / "out", settings), lambda done, total: None)
    assert devices == [(device, "bf16")] * 3
    acting = ("discrete", "libero", True, "trained")
    assert chosen == [acting, acting, 1]


@pytest.mark.parametrize("episodes", [0, 1])
def test_results_stand_without_an_open_loop(
    episodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The data may be out of reach of the evaluation; none of its episodes may be asked for."""
    import eval.evaluation.evaluate as evaluation
    import eval.open_loop.compare as open_loop
    import eval.world_model.imagine as world_model
    import pretrain.checkpoint.fetch as fetch
    from cluster.run.worker_entry_points import evaluate_checkpoint

    class Results:
        def to_json(self) -> dict[str, Any]:
            return {"successes": 3}

    class Scores:
        def summary(self) -> dict[str, float]:
            return {"psnr": 20.0}

    def compare(policy: Any, out: Path, episodes: int) -> None:
        raise InputError("the data have been moved")

    monkeypatch.setattr(fetch, "local_checkpoint", lambda url, run: Path(url))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: Results())
    monkeypatch.setattr(open_loop, "compare_open_loop", compare)
    monkeypatch.setattr(world_model, "imagine", lambda config, device: Scores())
    settings = EvaluationConfig(imagine_frames=2, imagine_episodes=episodes)
    found = evaluate_checkpoint(EvaluationJob(7, "c", tmp_path / "out", settings), lambda done, total: None)
    assert found == {"successes": 3} | ({"world_model": {"psnr": 20.0}} if episodes else {})
    assert ("no open loop at step 7: the data have been moved" in caplog.text) == bool(episodes)


def test_a_worker_stays_in_its_folder_where_that_of_the_command_is_missing(tmp_path: Path) -> None:
    assert in_a_process(tmp_path, "/not/on/this/machine")["folder"] == "/"


def test_a_failed_evaluation_leaves_traceback_and_failure_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        in_a_process(tmp_path, str(tmp_path), fail)
    assert "Traceback" in (tmp_path / f"{NAME}.log").read_text()
    (failure,) = read_failures(tmp_path, "eval_*")
    assert (failure.name, failure.user_mistake) == (NAME, True)
    assert failure.headline == "InputError: no such checkpoint"
