"""Train, stop, resume: the training loop from a user's view."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from data.errors import InputError
from pretrain import trainer
from pretrain.checkpoint.load import load_metadata
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder
from pretrain.telemetry.sinks import JsonlSink, read_metrics
from tests.support import training_case as case
from tests.support.ranks import RankFailedError, run_ranks
from tests.support.training_case import measured, train

CURVE = ("loss", "loss_action", "loss_image", "gradient_norm")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return case.write_dataset(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def whole(url: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An uninterrupted run at tensor 2 x data 2, ZeRO-3."""
    return train(case.settings(tmp_path_factory.mktemp("whole"), url, (2, 2, 3)))


def test_a_run_writes_metrics_summary_tokenizers_and_checkpoints(whole: RunFolder) -> None:
    records = measured(whole)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[0]["learning_rate"] == pytest.approx(0.01 / 3)
    assert records[-1]["tokens"] > records[0]["tokens"] > 0
    assert all(0 < record["mfu"] < 1 and record["tokens_per_second"] > 0 for record in records)
    assert all(0 <= record["accuracy_action"] <= 1 and record["loss_image"] > 0 for record in records)
    summary = json.loads(whole.summary.read_text())
    assert summary["parallel"] == {"tensor": 2, "data": 2, "zero_stage": 3}
    assert (summary["world_size"], summary["steps"], summary["resumed_from"]) == (4, 6, None)
    assert summary["tokens"] == records[-1]["tokens"]
    assert summary["loss"]["first"] == records[0]["loss"]
    assert summary["loss"]["action"]["last"] == records[-1]["loss_action"]
    assert summary["checkpoints"] == ["step_00000002", "step_00000004", "step_00000006"]
    assert summary["evaluations"] == []
    assert "torch" in summary["versions"]
    assert {path.name for path in whole.tokenizers.iterdir()} == {
        "image_tokenizer.safetensors",
        "text_tokenizer.json",
    }
    stored = load_metadata(whole.checkpoints / "step_00000006")
    assert stored["tokens"] == summary["tokens"]
    assert stored["config"]["model"]["hidden_size"] == 32


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    whole: RunFolder, url: str, tmp_path: Path
) -> None:
    config = case.settings(tmp_path, url, (2, 2, 3))
    folder = train(dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, stop_after=3)))
    assert folder.read_summary()["steps"] == 3
    train(config)
    assert [[r[key] for key in CURVE] for r in measured(folder)] == [
        [r[key] for key in CURVE] for r in measured(whole)
    ]
    assert folder.read_summary()["resumed_from"].endswith("step_00000003")
    assert folder.read_summary()["tokens"] == whole.read_summary()["tokens"]


def test_a_run_resumed_at_another_layout_continues_the_curve(
    whole: RunFolder, url: str, tmp_path: Path
) -> None:
    config = case.settings(tmp_path, url, (2, 2, 3))
    folder = train(dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, stop_after=3)))
    sink = JsonlSink(folder.metrics)  # steps after the checkpoint, of a start that was killed
    sink.write({"step": 4, "loss": 0.0})
    sink.close()
    train(case.settings(tmp_path, url, (1, 2, 1)))
    for ours, theirs in zip(measured(folder), measured(whole), strict=True):
        assert [ours[key] for key in CURVE] == pytest.approx([theirs[key] for key in CURVE], abs=1e-5, rel=0)
    (event,) = [record for record in read_metrics(folder.metrics) if "event" in record]
    assert (event["event"], event["step"], event["parallel"]["data"]) == ("resumed", 3, 2)
    assert event["parallel"]["tensor"] == 1


def test_a_finished_run_has_nothing_left_to_train(whole: RunFolder, url: str) -> None:
    before, lines = whole.read_summary(), whole.metrics.read_text()
    train(case.settings(whole.path.parent, url, (1, 2, 1)))
    assert measured(whole) == [json.loads(line) for line in lines.splitlines() if "event" not in line]
    after = whole.read_summary()
    assert (after["steps"], after["loss"], after["mfu"]) == (before["steps"], before["loss"], before["mfu"])


def test_rarer_lines_leave_the_token_count_right(whole: RunFolder, url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url)
    config.trainer.log_every, config.trainer.micro_batch = 4, 3
    config.checkpointing.keep_last = 1
    folder = train(config)
    assert [record["step"] for record in measured(folder)] == [4, 6]
    assert [record["tokens"] for record in measured(folder)] == [
        measured(whole)[step - 1]["tokens"] for step in (4, 6)
    ]
    assert measured(folder)[-1]["loss"] == pytest.approx(measured(whole)[-1]["loss"], abs=1e-5)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_00000006"]


def test_torchrun_gives_the_same_run(whole: RunFolder, url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, (1, 2, 3))
    assert run_ranks(case.run_main, 2, [*case.overrides(config), "eval.every=3", "cluster.address=null"]) == [
        0,
        0,
    ]
    folder = RunFolder(tmp_path / "run")
    losses = [record["loss"] for record in measured(folder)]
    assert losses == pytest.approx([record["loss"] for record in measured(whole)], abs=1e-5)
    assert (folder.path / "wandb" / "run_id").exists()


def _second_rank_fails(overrides: list[str]) -> int:
    def fail(config: TrainingConfig, **_: object) -> None:
        if os.environ["RANK"] == "1":
            raise InputError("a shard that only this rank reads is cut short")
        raise InputError("a setting is wrong")

    trainer.train = fail
    return case.run_main(overrides)


def test_torchrun_reports_an_error_of_another_rank_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_ranks(_second_rank_fails, 2, ["run.name=x", "data.url=d", "model=tiny"]) == [2, 2]
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert sorted(lines) == [
        "error on rank 1: a shard that only this rank reads is cut short",
        "error: a setting is wrong",
    ]


def test_torchrun_reports_an_invalid_value_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_ranks(case.run_main, 2, ["run.name=x", "data.url=d", "optim.schedule=linear"]) == [2, 2]
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert "optim.schedule=linear, expected one of" in lines[0]


def test_torchrun_reports_a_misspelt_key_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_ranks(case.run_main, 1, ["run.name=x", "data.url=d", "trainer.stepz=3"]) == [2]
    assert capfd.readouterr().err.splitlines()[-1] == (
        "error: pretrain.main: unknown setting 'trainer.stepz'; did you mean 'trainer.steps'?"
    )


def test_a_training_that_diverged_before_its_first_checkpoint_ends(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, (1, 2, 3))
    config.optim.lr, config.optim.gradient_clipping = 1e30, 0.0
    config.checkpointing.every, config.guard.bad_steps = 100, 3
    with pytest.raises(RankFailedError, match=r"DivergedError: step 5: 3 steps in a row .* no checkpoint"):
        train(config)
    assert CheckpointLocation(tmp_path / "run" / "checkpoints").steps() == []
