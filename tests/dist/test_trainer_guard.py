"""Bad steps in a whole training: skipped, counted, answered by a rollback; stop requests."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from data.stream.loader import TokenStream
from data.stream.setup import make_plan
from pretrain.checkpoint.load import load_metadata
from pretrain.config import TrainingConfig
from pretrain.parallel.engine import Engine
from pretrain.telemetry.sinks import read_metrics
from tests.support import training_case as case
from tests.support.ranks import RankFailedError, run_ranks
from tests.support.training_case import measured

LAYOUT = (1, 2, 3)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return case.write_dataset(tmp_path_factory.mktemp("shards"))


def _record_positions() -> list[int]:
    """Record which global batches are read from now on."""
    positions: list[int] = []
    original = TokenStream.micro_batches

    def micro_batches(self: TokenStream, step: int, *rest: int) -> Any:
        positions.append(step)
        return original(self, step, *rest)

    TokenStream.micro_batches = micro_batches  # type: ignore[method-assign]
    return positions


def _train_on_bad_batches(config: TrainingConfig, bad: set[int]) -> list[int]:
    """Train where the loss of some global batches is NaN; return the batches that were read."""
    positions = _record_positions()
    original = Engine._forward

    def forward(self: Engine, *args: Any) -> Any:
        loss, sums = original(self, *args)
        return (loss * math.nan if positions[-1] in bad else loss), sums

    Engine._forward = forward  # type: ignore[method-assign]
    assert case.try_train(config) == ""
    return positions


def test_a_bad_step_is_skipped_and_reported(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, LAYOUT)
    for positions in run_ranks(_train_on_bad_batches, 2, config, {2}):
        assert positions == [0, 1, 2, 3, 4, 5]
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    (event,) = [record for record in records if record.get("event") == "skipped"]
    assert (event["step"], event["in_a_row"], event["loss"]) == (3, 1, None)
    steps = measured(case.RunFolder.of(config.run))
    assert [record["loss"] is None for record in steps] == [False, False, True, False, False, False]
    stored = load_metadata(tmp_path / "run" / "checkpoints" / "step_00000006")["guard"]
    assert (stored["skipped"], stored["in_a_row"], stored["good"], stored["offset"]) == (1, 0, 5, 0)


def test_too_many_bad_steps_roll_the_run_back_and_leave_their_batches_out(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, LAYOUT)
    config.guard.bad_steps = 2
    config.trainer.stop_after = 5
    for positions in run_ranks(_train_on_bad_batches, 2, config, {2, 3}):
        assert positions == [0, 1, 2, 3, 4, 5, 6]
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    (event,) = [record for record in records if record.get("event") == "rolled_back"]
    assert (event["step"], event["from_step"], event["left_out_batches"]) == (2, 4, 2)
    assert [r["step"] for r in measured(case.RunFolder.of(config.run))] == [1, 2, 3, 4, 5]
    assert all(r["loss"] is not None for r in measured(case.RunFolder.of(config.run)))
    config.trainer.stop_after = None
    for positions in run_ranks(_train_on_bad_batches, 2, config, {2, 3}):
        assert positions == [7], "a resumed run continues after the batches that were left out"
    stored = load_metadata(tmp_path / "run" / "checkpoints" / "step_00000006")["guard"]
    assert (stored["offset"], stored["rollbacks"], stored["skipped"]) == (2, 1, 2)
    name = f"{Path(url).name}/action"
    taken = measured(case.RunFolder.of(config.run))[-1][f"epoch/{name}"]
    plan = make_plan(config.data, config.trainer, config.trainer.seed)
    assert taken == plan.epochs(6 + 2)[name], "batches that were left out count as read"


def test_a_run_with_too_many_rollbacks_has_diverged(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, (1, 1, 1))
    config.guard.bad_steps, config.guard.rollbacks = 2, 1
    with pytest.raises(RankFailedError, match=r"DivergedError: step 4: 2 steps in a row .*back 1 times"):
        run_ranks(_train_on_bad_batches, 1, config, set(range(2, 99)))
    config.run.name = "other"
    with pytest.raises(RankFailedError, match=r"DivergedError: step 2: .*no checkpoint yet to go back to"):
        run_ranks(_train_on_bad_batches, 1, config, set(range(99)))


def _signal_one_rank(number: int, overrides: list[str]) -> int:
    """Train where rank 1 gets a signal in its third step; return the exit code."""
    original = Engine.step

    def step(self: Engine, *args: Any) -> Any:
        if self.step_count == 2 and self.groups.rank == 1:
            os.kill(os.getpid(), number)
        return original(self, *args)

    Engine.step = step  # type: ignore[method-assign]
    return case.run_main(overrides)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(
    url: str, tmp_path: Path, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    config = case.settings(tmp_path, url, LAYOUT)
    config.checkpointing.every = 100
    overrides = case.overrides(config)
    assert run_ranks(_signal_one_rank, 2, number, overrides) == [85, 85]
    folder = case.RunFolder.of(config.run)
    names = [path.name for path in folder.checkpoints.iterdir()]
    assert names == ["step_00000004"], "requested in step 3, agreed on while step 4 ran"
    assert read_metrics(folder.metrics)[-1] == {"event": "preempted", "step": 4}
    assert "stopped on request, with a checkpoint of step 4" in capfd.readouterr().err
    assert run_ranks(case.run_main, 2, overrides) == [0, 0]
    assert [record["step"] for record in measured(folder)] == [1, 2, 3, 4, 5, 6]


def _out_of_memory(config: TrainingConfig) -> str:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    Engine.step = fail  # type: ignore[method-assign]
    return case.try_train(config)


def test_out_of_memory_is_an_input_error_in_one_line(url: str, tmp_path: Path) -> None:
    (message,) = run_ranks(_out_of_memory, 1, case.settings(tmp_path, url))
    assert message.startswith(
        "out of memory on cpu: parallel.tensor=1 parallel.data=1 trainer.micro_batch=null"
    )
    assert "\n" not in message
