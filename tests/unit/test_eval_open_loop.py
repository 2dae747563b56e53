"""Open loop: a policy's first actions beside those of held-out demonstrations; how sure it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.config import DataConfig
from data.errors import InputError
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.stream.samples import action_prompt
from data.tokens.action import ActionRanges, decode
from data.tokens.image_block import image_block
from data.tokens.prompt_text import action_text
from eval.open_loop.compare import compare_open_loop
from eval.open_loop.partings import constant_actions, largest_partings, relative_errors
from eval.policy import loaded_model as model_module
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.interface import Observation
from eval.policy.source import PolicyReference
from pretrain.checkpoint.manifest import Manifest
from pretrain.config import RunConfig, TrainingConfig
from pretrain.model.generate import decode_action_chunk
from pretrain.model.transformer import Transformer, initialise
from pretrain.policy_settings import PolicySettings
from pretrain.settings import to_yaml
from pretrain.sources import libero_source
from tests.support.exported_policy import CHUNK, HISTORY, POLICY_MODEL
from tests.support.shards_case import write_dataset
from tests.support.tokenizers import shipped_image_tokenizer, shipped_text_tokenizer


@pytest.fixture
def network() -> Transformer:
    made = Transformer(POLICY_MODEL)
    initialise(made, seed=0)
    return made.eval()


@pytest.fixture
def checkpoint(tmp_path: Path, network: Transformer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's checkpoint, and the data set that its settings name."""
    index = write_dataset(tmp_path / "shards", count=5)
    image = replace(index.image, tokenizer_sha256=shipped_image_tokenizer().sha256)
    replace(index, image=image).save(str(tmp_path / "shards"))
    data = DataConfig(url=str(tmp_path / "shards"), chunk=CHUNK, history=HISTORY, cameras=["wrist", "agent"])
    run = tmp_path / "run"
    folder = run / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    (run / "config.yaml").write_text(
        to_yaml(TrainingConfig(run=RunConfig(name="run"), model=POLICY_MODEL, data=data))
    )
    shipped_text_tokenizer().save(run / "tokenizers")
    shipped_image_tokenizer().save(run / "tokenizers" / "image_tokenizer.safetensors")
    ranges = {"minimum": list(index.action_ranges.minimum), "maximum": list(index.action_ranges.maximum)}
    (run / "action_ranges.json").write_text(json.dumps(ranges))
    settings = PolicySettings.of(
        data,
        64,
        (libero_source(data, index.action_ranges),),
        shipped_image_tokenizer().sha256,
        shipped_text_tokenizer().sha256,
    )
    Manifest(7, 7, {"policy": settings.to_json()}, {}, {}).write(folder)
    monkeypatch.setattr(model_module, "load_weights", lambda path, choice="auto": dict(network.state_dict()))
    return folder


def test_predictions_are_those_of_the_prompts_of_training(
    checkpoint: Path, network: Transformer, tmp_path: Path
) -> None:
    done = compare_open_loop(PolicyReference(str(checkpoint), device="cpu"), tmp_path)
    (compared,) = done.episodes
    index = DatasetIndex.load(str(tmp_path / "shards"))
    (entry,) = [each for each in index.episodes if each.key == compared.episode]
    assert entry.split == compared.split
    episode = read_episode(index, entry)
    np.testing.assert_array_equal(compared.expert, episode.actions)
    text = shipped_text_tokenizer().encode(action_text(episode.instruction))
    for step in range(episode.length):
        blocks = [
            image_block(episode.codes[camera][seen], 64)
            for seen in ((step - 1, step) if step else (0,))
            for camera in ("wrist", "agent")
        ]
        bins = decode_action_chunk(network, [action_prompt(text, blocks)], CHUNK)[0]
        np.testing.assert_array_equal(compared.predicted[step], decode(bins, index.action_ranges)[0])
    assert compared.entropy is not None
    assert compared.entropy.shape == (episode.length,)
    width = np.subtract(index.action_ranges.maximum, index.action_ranges.minimum)
    errors = np.abs(compared.predicted - episode.actions)
    np.testing.assert_allclose(done.mean_absolute_error, errors.mean(axis=0))
    assert done.error == pytest.approx((errors / width).mean())


def test_files_hold_the_curves_and_the_frames_where_they_part(checkpoint: Path, tmp_path: Path) -> None:
    done = compare_open_loop(PolicyReference(str(checkpoint), device="cpu"), tmp_path)
    content = json.loads((tmp_path / "open_loop.json").read_text())
    assert content["names"] == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    np.testing.assert_allclose(
        content["episodes"][0]["expert"], done.episodes[0].expert, rtol=1e-4, atol=1e-9
    )
    assert [row["frame"] for row in content["partings"]] == done.partings
    assert done.partings, "an untrained policy parts from the demonstration"
    with Image.open(tmp_path / "open_loop.png") as picture:
        assert picture.height == 32 + 2 * 130 - 2, "both cameras"
    with pytest.raises(InputError, match="episodes=0: expected at least 1"):
        compare_open_loop(PolicyReference(str(checkpoint), device="cpu"), tmp_path, episodes=0)
    with pytest.raises(InputError, match="expert: has no data to be compared on"):
        compare_open_loop(PolicyReference("expert"), tmp_path)


def test_asking_for_the_entropy_changes_no_action(checkpoint: Path) -> None:
    policy = CheckpointPolicy(checkpoint, device="cpu")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 2, 64, 64, 3), dtype=np.uint8)
    seen = [Observation(0, "lift the cube", frames), Observation(1, "lift the cube", frames[:1])]
    plain = policy.decide(seen)
    assert plain.entropy is None
    asked = policy.decide([seen[0], replace(seen[1], with_entropy=True)])
    np.testing.assert_array_equal(asked.actions, policy.act(seen))
    assert asked.entropy is not None
    assert asked.entropy.shape == (2, CHUNK)
    assert (asked.entropy > 0).all()
    assert (asked.entropy <= np.log(256) + 1e-5).all()


def test_errors_are_shares_of_the_ranges_of_the_numbers_that_a_robot_has() -> None:
    ranges = ActionRanges((-1.0, 0.0, 5.0, -1.0), (1.0, 4.0, 5.0, 1.0))
    predicted, expert = np.array([[0.5, 2.0, 5.0, 1.0]]), np.array([[0.0, 1.0, 7.0, -1.0]])
    present = np.array([True, True, True, False])
    assert relative_errors(predicted, expert, ranges, present) == pytest.approx([(0.25 + 0.25) / 2])
    assert constant_actions(np.array([[0.0], [1.0], [5.0]])).tolist() == [[1.0]] * 3


def test_partings_are_the_largest_errors_far_from_one_another() -> None:
    errors = np.zeros(40)
    errors[[3, 4, 20, 30, 36, 39]] = [0.9, 1.0, 0.5, 0.8, 0.7, 0.6]
    assert largest_partings(errors) == [4, 20, 30, 36]
    assert largest_partings(np.zeros(9)) == []
