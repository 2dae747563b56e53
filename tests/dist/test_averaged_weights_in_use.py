"""The average of a training's weights where it is used: policies, results, exports, inspection, resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cluster.inspect.checkpoint import checkpoint_lines, read_checkpoint
from data.contracts import WeightsChoice
from data.errors import InputError
from eval.config import EvalCommandConfig, ExportedConfig
from eval.policy.loaded_model import load_model
from eval.policy.source import PolicyReference, named_policy
from pretrain.checkpoint.weights import load_weights
from pretrain.config import TrainingConfig
from pretrain.convert.exporting import export_weights
from tests.support import training_case as case
from tests.support.ranks import run_ranks

WORDS = "averaged (decay 0.9)"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    """The settings of a run of four steps, with an average of its weights."""
    root = tmp_path_factory.mktemp("averaged")
    settings = case.settings(root, case.write_dataset(root / "shards"), (1, 2, 3))
    settings.optim.ema, settings.trainer.stop_after = 0.9, 4
    case.train(settings)
    return settings


@pytest.fixture(scope="module")
def checkpoint(config: TrainingConfig) -> Path:
    return Path(config.run.dir) / "run" / "checkpoints" / "step_00000004"


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(values, expected[name]) for name, values in found.items()
    )


@pytest.mark.parametrize(
    ("choice", "meant", "words"),
    [("auto", "averaged", WORDS), ("averaged", "averaged", WORDS), ("trained", "trained", "trained")],
)
def test_a_policy_has_the_chosen_weights_and_says_which(
    checkpoint: Path, choice: WeightsChoice, meant: WeightsChoice, words: str
) -> None:
    model = load_model(checkpoint, device="cpu", weights=choice)
    assert same(dict(model.network.state_dict()), load_weights(checkpoint, choice=meant))
    other: WeightsChoice = "trained" if meant == "averaged" else "averaged"
    assert not same(dict(model.network.state_dict()), load_weights(checkpoint, choice=other))
    assert model.weights == words
    reference, _, out = named_policy(
        EvalCommandConfig(checkpoint=str(checkpoint), suite="fake", weights=choice)
    )
    assert reference.weights == choice
    assert replace(reference, in_simulator=False).record().weights == words
    assert out.name == ("step_00000004-fake-trained" if choice == "trained" else "step_00000004-fake")


@pytest.mark.parametrize(("choice", "words"), [("auto", WORDS), ("trained", "trained")])
def test_an_export_has_the_chosen_weights(
    checkpoint: Path, tmp_path: Path, choice: WeightsChoice, words: str
) -> None:
    out = tmp_path / "out"
    summary = export_weights(checkpoint, out, "float32", None, 10**9, lambda *_: None, choice=choice)
    assert summary.weights == words
    policy = json.loads((out / "policy.json").read_bytes())
    assert policy.get("weights") == (words if choice == "auto" else None)
    exported = load_file(out / "model.safetensors")
    expected = load_weights(checkpoint, choice="averaged" if choice == "auto" else "trained")
    assert same(exported, expected)


def test_exports_and_the_expert_have_no_choice_of_weights(checkpoint: Path, tmp_path: Path) -> None:
    export_weights(checkpoint, tmp_path / "out", None, None, 10**9, lambda *_: None)
    with pytest.raises(InputError, match=r"^weights=trained: .* is exported weights, .* leave it out$"):
        PolicyReference(str(tmp_path / "out"), exported=ExportedConfig(), weights="trained").record()
    with pytest.raises(InputError, match=r"^weights=trained: policy=expert has no network; leave it out$"):
        named_policy(EvalCommandConfig(policy="expert", weights="trained", out=str(tmp_path)))


def test_inspection_names_the_average(checkpoint: Path) -> None:
    row = read_checkpoint(str(checkpoint))
    assert row["ema"] == {"decay": 0.9, "updates": 4}
    lines = "\n".join(checkpoint_lines(row))
    assert "weights, their average (decay 0.9, 4 updates) and the optimiser's moments" in lines


def test_the_average_is_a_setting_that_only_run_change_changes(config: TrainingConfig) -> None:
    other = replace(config, optim=replace(config.optim, ema=None))
    other = replace(other, trainer=replace(config.trainer, stop_after=5))
    for message in run_ranks(case.try_train, 2, other):
        assert "optim.ema was 0.9, now None" in message
        assert "run.change='[optim.ema]'" in message
    other = replace(other, run=replace(config.run, change=["optim.ema"]))
    folder = case.train(other)
    weights = folder.checkpoints / "step_00000005"
    assert read_checkpoint(str(weights))["ema"] is None
    assert load_model(weights, device="cpu").weights == "trained"
    with pytest.raises(InputError, match=r"^weights=averaged: .*step_00000005 has no average of its weights"):
        load_model(weights, device="cpu", weights="averaged")
