"""What world models are asked: all cameras, and as many actions and time steps as in their training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import InputError
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.stream.samples import action_prompt, world_prompt
from data.tokens.action import DEFAULT_RANGES, encode
from data.tokens.image import ImageTokenizer
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT
from eval.config import ImagineConfig
from eval.policy import loaded_model as model_module
from eval.world_model import imagine as world_model
from eval.world_model.imagine import imagine
from eval.world_model.rollout import predicted_steps
from pretrain.checkpoint.manifest import Manifest
from pretrain.config import RunConfig, TrainingConfig
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer, initialise
from pretrain.policy_settings import PolicySettings
from pretrain.settings import to_yaml
from pretrain.sources import libero_source
from tests.support.imagine_case import (
    BOTH,
    CODEBOOK,
    EPISODE,
    PIXELS,
    PROMPTS,
    REQUESTS,
    image_tokenizer,
    images_of,
    prepare_data,
    recording_checkpoint,
    requested,
)
from tests.support.tokenizers import shipped_text_tokenizer


@pytest.fixture(scope="module")
def image() -> ImageTokenizer:
    return image_tokenizer()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, image: ImageTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare_data(folder, image)
    return folder


@pytest.fixture
def checkpoint(
    prepared: Path,
    tmp_path: Path,
    image: ImageTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Path:
    """A checkpoint whose world model adds one to every code of every camera in a time step."""
    settings: dict[str, Any] = getattr(request, "param", {"cameras": BOTH})
    return recording_checkpoint(prepared, tmp_path, image, monkeypatch, **settings)


def first_codes(checkpoint: Path) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Codes [2, 8, 8] of the episode's first frames, agent before wrist, and bins [7, 7] of its actions."""
    index = DatasetIndex.load(str(checkpoint.parents[3] / "data"))
    entry = next(each for each in index.episodes if each.key == EPISODE)
    episode = read_episode(index, entry)
    codes = np.stack([episode.codes[camera][0] for camera in BOTH]).astype(np.int64)
    return codes, np.asarray(encode(episode.actions, index.action_ranges), np.int32)


# Cameras, P, and the first time steps of the predictions of the six that an episode of seven has.
STRIDES = [(BOTH, 1, [0, 1, 2, 3, 4, 5]), (BOTH, 2, [0, 2, 4]), (["wrist"], 4, [0]), (BOTH, 5, [0])]


@pytest.mark.parametrize(
    ("checkpoint", "begins"),
    [({"cameras": cameras, "predicted_frames": p}, begins) for cameras, p, begins in STRIDES],
    indirect=["checkpoint"],
)
def test_all_cameras_and_as_many_actions_as_in_training_are_in_the_prompt(
    checkpoint: Path, begins: list[int]
) -> None:
    imagine(requested(checkpoint, frames=99, guidance=2.0))
    codes, actions = first_codes(checkpoint)
    model = world_model.load_model(checkpoint)
    cameras, stride = model.settings.cameras, model.settings.predicted_frames
    text = np.array(shipped_text_tokenizer().encode(WORLD_TEXT), np.int32)
    given = codes[[BOTH.index(camera) for camera in cameras]]
    for begin, prompt, (sampling, guidance) in zip(begins, PROMPTS, REQUESTS, strict=True):
        blocks = image_block((given + begin) % CODEBOOK, PIXELS)
        assert prompt == world_prompt(text, blocks, actions[begin : begin + stride]).tolist()
        assert sampling.environments == [begin]
        assert np.asarray(guidance.prompts[0]).tolist() == action_prompt(text, [blocks]).tolist()


@pytest.mark.parametrize(
    ("length", "count", "stride", "predicted"),
    [(7, 99, 1, 6), (7, 4, 1, 4), (7, 99, 2, 6), (8, 99, 2, 7), (7, 99, 4, 4), (7, 3, 4, 3), (4, 9, 4, 3)],
)
def test_predictions_end_where_the_episode_has_no_more_actions_for_one(
    length: int, count: int, stride: int, predicted: int
) -> None:
    assert predicted_steps(length, count, stride) == predicted


@pytest.mark.parametrize("checkpoint", [{"cameras": BOTH, "predicted_frames": 3}], indirect=True)
@pytest.mark.parametrize("protocol", ["tokens", "published"])
def test_the_last_of_several_predicted_time_steps_is_the_next_input(
    checkpoint: Path, protocol: str, image: ImageTokenizer
) -> None:
    done = imagine(requested(checkpoint, protocol))
    codes, _ = first_codes(checkpoint)
    predicted = (codes + 3) % CODEBOOK
    following = image.encode(image.decode(predicted)) if protocol == "published" else predicted
    first, second = (images_of(prompt) for prompt in PROMPTS)
    np.testing.assert_array_equal(first, codes)
    np.testing.assert_array_equal(second, following)
    assert len(done.overall.frames) == 4 + (protocol == "published")  # two of the second prediction are cut


@pytest.mark.parametrize("checkpoint", [{"cameras": BOTH, "predicted_frames": 8}], indirect=True)
def test_episodes_and_models_that_are_too_short_are_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=f"episode {EPISODE} has length 7, expected at least 8 time steps"):
        imagine(requested(checkpoint))
    model = world_model.load_model(checkpoint)
    text, image = len(model.text.encode(WORLD_TEXT)), 3 + 8 * 9 + 1
    needed = 1 + text + 2 * image + 8 * 9 + 1 + 16 * image - 1
    for longest in (needed, needed - 1):
        model.network.config.max_positions = longest
        with pytest.raises(InputError) as caught:
            imagine(requested(checkpoint))
    assert str(caught.value) == (
        f"checkpoint={checkpoint}: 2 images of 76 tokens, 8 actions and 16 predicted images take {needed} "
        f"positions, the model has {needed - 1}; take a checkpoint with more (model.max_positions) or "
        "smaller frames"
    )
    monkeypatch.setattr(model.data.mixture, "world", 0.0)
    with pytest.raises(InputError, match=r"trained without world samples \(data\.mixture\.world=0\), so it"):
        imagine(requested(checkpoint))
    assert PROMPTS == []


def test_a_trained_run_of_two_cameras_states_and_time_steps_is_rolled_out(
    prepared: Path, tmp_path: Path, image: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ModelConfig(
        vocabulary_size=16_896, hidden_size=32, ffn_size=64, layers=2, heads=2, max_positions=600, dropout=0.0
    )
    network = Transformer(sizes)
    initialise(network, seed=0)
    monkeypatch.setattr(model_module, "load_weights", lambda path, choice: dict(network.state_dict()))
    data = DataConfig(url=str(prepared / "data"), cameras=BOTH, predicted_frames=2, state=True)
    text = shipped_text_tokenizer()
    settings = PolicySettings.of(data, PIXELS, (libero_source(data),), image.sha256, text.sha256)
    folder = tmp_path / "checkpoints/step_00000007"
    folder.mkdir(parents=True)
    config = TrainingConfig(run=RunConfig(name="run"), model=sizes, data=data)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    text.save(tmp_path / "tokenizers")
    image.save(tmp_path / "tokenizers/image_tokenizer.safetensors")
    ranges = {"minimum": list(DEFAULT_RANGES.minimum), "maximum": list(DEFAULT_RANGES.maximum)}
    (tmp_path / "action_ranges.json").write_text(json.dumps(ranges))
    Manifest(7, 7, {"policy": settings.to_json()}, {}, {}).write(folder)
    done = imagine(ImagineConfig(checkpoint=str(folder), frames=3, episodes=2), device="cpu")
    assert list(done.views) == BOTH
    assert {len(rollout.frames) for view in done.views.values() for rollout in view.rollouts} == {3}
    assert done.scores.parent == tmp_path / "eval/step_00000007"
