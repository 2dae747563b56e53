"""A new run that starts with the weights of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.storage.index import DatasetIndex
from data.stream.loader import TokenStream
from data.tokens.text import TextTokenizer
from data.tokens.vocabulary import IGNORED_LABEL
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.interface import Observation
from pretrain.checkpoint.fetch import local_checkpoint
from pretrain.checkpoint.policy_files import describe_checkpoint
from pretrain.checkpoint.weights import load_weights
from pretrain.config import TrainingConfig
from pretrain.convert.exporting import export_weights
from pretrain.convert.importing import import_weights
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ActionHeadConfig
from pretrain.model.loss import LossSettings, label_weights
from pretrain.model.transformer import Transformer
from pretrain.run_folder import RunFolder
from pretrain.telemetry.sinks import read_metrics
from tests.support import training_case as case
from tests.support.ranks import run_ranks


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return case.write_dataset(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def earlier(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another run."""
    config = case.settings(tmp_path_factory.mktemp("earlier"), url, (1, 1, 1))
    config.trainer.stop_after = 2
    return case.train(config).checkpoints / "step_00000002"


def test_a_run_keeps_the_action_ranges_of_its_data(earlier: Path, url: str) -> None:
    written = json.loads((earlier.parents[1] / "action_ranges.json").read_text())
    ranges = DatasetIndex.load(url).action_ranges
    assert written == {"minimum": list(ranges.minimum), "maximum": list(ranges.maximum)}


def test_a_checkpoint_names_what_it_was_trained_with(earlier: Path, url: str) -> None:
    index, description = DatasetIndex.load(url), describe_checkpoint(earlier)
    assert description.notes == ()
    assert description.dataset == index.fingerprint
    settings = description.settings
    assert settings.image_tokenizer_sha256 == index.image.tokenizer_sha256
    assert settings.text_tokenizer_sha256 == TextTokenizer.load().sha256
    source = settings.source
    assert (source.action_ranges, settings.pixels) == (index.action_ranges, index.image.pixels)
    assert (settings.cameras, settings.history, source.chunk) == (("agent",), 1, 3)


def test_a_checkpoint_names_the_decoders_of_its_training(earlier: Path, url: str, tmp_path: Path) -> None:
    assert describe_checkpoint(earlier).settings.decoders == ("discrete",)
    config = case.settings(tmp_path, url)
    config.model.action_head = ActionHeadConfig(time_horizon=config.data.chunk)
    config.loss.tokens_for_actions, config.trainer.stop_after = False, 1
    checkpoint = case.train(config).checkpoints / "step_00000001"
    description = describe_checkpoint(checkpoint)
    assert description.settings.decoders == ("continuous",)
    assert description.action_head == config.model.action_head
    policy = CheckpointPolicy(checkpoint, "cpu")
    frames = np.zeros((1, 1, policy.pixels, policy.pixels, 3), np.uint8)
    assert policy.act([Observation(0, "lift", frames)]).shape == (1, config.data.chunk, 7)


def loss_of(checkpoint: Path, config: TrainingConfig) -> float:
    """Loss of its weights on the first global batch, in one process."""
    model = Transformer(config.model)
    model.load_state_dict(load_weights(checkpoint))
    with TokenStream(config.data, config.trainer, config.trainer.seed) as stream:
        (batch,) = stream.micro_batches(0, 0, 1)
    flat = torch.as_tensor(batch.labels).long().flatten()
    labelled = (flat != IGNORED_LABEL).nonzero().squeeze(1)
    labels, settings = flat[labelled], LossSettings(config.loss.image_weight, config.loss.z_loss)
    normaliser = torch.stack([label_weights(labels, settings).sum(), torch.tensor(float(len(labels)))])
    tokens, positions = (torch.as_tensor(a).long() for a in (batch.tokens, batch.positions))
    mask = packed_mask(batch.segments, batch.blocks, config.model, torch.device("cpu"))
    return model(tokens, positions, mask, labelled, labels, normaliser, settings)[0].item()


def events(folder: RunFolder) -> list[tuple[str, int, str]]:
    records = [record for record in read_metrics(folder.metrics) if "event" in record]
    return [(record["event"], record["step"], record["checkpoint"]) for record in records]


@pytest.mark.parametrize("layout", [(2, 1, 3), (1, 2, 1)])
def test_a_new_run_starts_with_the_weights_of_another(
    url: str, earlier: Path, tmp_path: Path, layout: tuple[int, int, int]
) -> None:
    config = case.settings(tmp_path, url, layout)
    config.checkpointing.start_from, config.trainer.stop_after = str(earlier), 2
    folder = case.train(config)
    records = case.measured(folder)
    assert records[0]["loss"] == pytest.approx(loss_of(earlier, config), abs=1e-5)
    assert [record["step"] for record in records] == [1, 2]
    assert records[0]["learning_rate"] == pytest.approx(0.01 / 3)
    assert events(folder) == [("started", 0, str(earlier))]
    assert folder.read_summary()["resumed_from"] is None

    config.trainer.stop_after = 3  # a checkpoint of its own goes before
    case.train(config)
    own = str(folder.checkpoints / "step_00000002")
    assert events(folder) == [("started", 0, str(earlier)), ("resumed", 2, own)]
    assert [record["step"] for record in case.measured(folder)] == [1, 2, 3]


def test_checkpoints_outside_the_run_folder_belong_to_one_run(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, (1, 2, 1))
    config.checkpointing.url, config.trainer.stop_after = str(tmp_path / "checkpoints"), 2
    case.train(config)
    config.run.name = "other"
    messages = run_ranks(case.try_train, 2, config)
    refusal = "holds checkpoints of the run run, this one is other; give each run a location of its own"
    assert refusal in messages[0]
    assert messages[1] == messages[0]
    assert not (tmp_path / "other").exists()
    config.run.name, config.trainer.stop_after = "run", 3
    folder = case.train(config)
    assert [record["step"] for record in case.measured(folder)] == [1, 2, 3]
    remote, fetched = tmp_path / "checkpoints" / "step_00000003", folder.path / "fetched" / "step_00000003"
    weights = load_weights(remote)
    for found in (local_checkpoint(str(remote), run=folder.path), local_checkpoint(remote.as_uri())):
        assert found == fetched, "an evaluation needs the tokenizers of the run's folder"
        assert all(torch.equal(tensor, weights[name]) for name, tensor in load_weights(found).items())
    assert local_checkpoint(str(remote)) == remote


def test_weights_that_cannot_be_used_are_refused_before_a_run_folder_is_made(
    url: str, earlier: Path, tmp_path: Path
) -> None:
    config = case.settings(tmp_path, url)
    config.checkpointing.start_from = str(tmp_path / "nowhere")
    assert "nowhere: no committed checkpoint" in run_ranks(case.try_train, 1, config)[0]
    config.checkpointing.start_from = str(earlier)
    wider = replace(config, model=replace(config.model, ffn_size=64))
    assert "another network" in run_ranks(case.try_train, 1, wider)[0]
    assert not RunFolder.of(config.run).path.exists()
    config.trainer.stop_after = 1
    case.train(config)  # the name was not spent


def test_resuming_from_weights_alone_is_refused(url: str, earlier: Path, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, (1, 1, 1))
    export_weights(earlier, tmp_path / "exported", "float32", None, 10**9, lambda done, total: None)
    import_weights(tmp_path / "exported", tmp_path / "alone", 10**9, lambda done, total: None)
    config.checkpointing.resume = str(tmp_path / "alone")
    (message,) = run_ranks(case.try_train, 1, config)
    assert "start_from" in message


def test_resuming_from_a_checkpoint_of_another_split_is_refused(
    url: str, earlier: Path, tmp_path: Path
) -> None:
    config = case.settings(tmp_path, url)
    config.checkpointing.resume, config.trainer.stop_after = str(earlier), 3
    config.data.split = "all"
    (message,) = run_ranks(case.try_train, 1, config)
    assert f"{earlier}: was trained with data.split=train, now data.split=all; give the same" in message
    config.data.split, config.run.name = "train", "other"
    case.train(config)
