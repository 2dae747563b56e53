"""Settings of evaluations beside a training are checked before any process starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import RootConfig
from cluster.run.preflight import check_run
from data.errors import InputError
from eval.simulator.interface import TaskInfo
from pretrain.settings import compose


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.every=15", r"eval\.every=15 is not a multiple of checkpointing\.every=10"),
        ("eval.retries=-1", r"eval\.retries=-1: expected at least 0"),
        ("eval.episodes=51", r"eval\.episodes=51 from eval\.seed=0"),
        (
            "eval.decoder=continuous",
            r"^eval\.decoder=continuous: the checkpoints of this training have discrete only; give another",
        ),
        (
            "eval.weights=averaged",
            r"^eval\.weights=averaged, but optim\.ema=null: the checkpoints of this training have no average",
        ),
        ("data.mixture.action=0", r"^data\.mixture\.action=0: .* know no actions, .*; set eval\.every=0"),
    ],
)
def test_evaluation_settings_out_of_range_are_refused(override: str, message: str) -> None:
    given = ["run.name=a", "data.url=shards", "checkpointing.every=10", "eval.every=10", override]
    with pytest.raises(InputError, match=message):
        check_run(compose("train", RootConfig, "train", given))


def test_decoder_and_weights_that_the_training_makes_are_accepted() -> None:
    given = ["run.name=a", "data.url=shards", "checkpointing.every=10", "eval.every=10"]
    head = ["model.action_head.time_horizon=5", "eval.decoder=continuous"]
    check_run(compose("train", RootConfig, "train", [*given, *head]))
    average = ["optim.ema=0.999", "eval.weights=averaged"]
    check_run(compose("train", RootConfig, "train", [*given, *average]))


def test_more_episodes_than_a_task_has_initial_states_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class FewStates:
        name = "few"
        tasks = tuple(
            TaskInfo("few", number, f"task_{number}", "words", 10, "Fake", initial_states=count)
            for number, count in enumerate((50, 1))
        )

    monkeypatch.setattr("eval.simulator.registry.open_suite", lambda name: FewStates())
    given = ["run.name=a", "data.url=shards", "checkpointing.every=10", "eval.every=10", "eval.suite=few"]
    with pytest.raises(
        InputError,
        match=r"^eval\.episodes=4 from eval\.seed=0: task 1 of few has 1 fixed initial state; ask for fewer",
    ):
        check_run(compose("train", RootConfig, "train", given))
    check_run(compose("train", RootConfig, "train", [*given, "eval.tasks=[0]"]))


@pytest.mark.parametrize("setting", ["lpips_weights", "fvd_network"])
def test_backbones_of_scores_that_cannot_be_used_are_refused(setting: str, tmp_path: Path) -> None:
    path = tmp_path / "backbone"
    path.write_bytes(b"nothing")
    given = ["run.name=a", "data.url=shards", "checkpointing.every=10", "eval.every=10"]
    given.append(f"eval.{setting}={path}")
    with pytest.raises(InputError, match=rf"{path}"):
        check_run(compose("train", RootConfig, "train", given))
    check_run(compose("train", RootConfig, "train", [*given, "eval.imagine_frames=0"]))
