"""World-model rollouts: autoregressive predictions, true actions, scores, and files that open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from data.config import PrepareConfig
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.stream.samples import world_prompt
from data.tokens.action import encode
from data.tokens.image import ImageTokenizer
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT
from data.tokens.vocabulary import ACTION_START
from eval.config import ImagineConfig
from eval.contact_sheet import evenly_spaced, tile
from eval.world_model import imagine as world_model
from eval.world_model.dataset import choose_episodes
from eval.world_model.imagine import imagine
from eval.world_model.pictures import ViewFrames, contact_sheet, shown_frames
from eval.world_model.rollout import predict
from eval.world_model.scores import Videos, score
from pretrain.model.sampling import Sampling
from tests.support.decoding import small_model
from tests.support.imagine_case import (
    CODEBOOK,
    PIXELS,
    PROMPTS,
    REQUESTS,
    image_tokenizer,
    loaded_model,
    prepare_data,
    recording_checkpoint,
)
from tests.support.libero_layout import demonstration, write_file
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
    prepared: Path, tmp_path: Path, image: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A checkpoint whose world model adds one to every code, and records its inputs."""
    return recording_checkpoint(prepared, tmp_path, image, monkeypatch)


def test_each_prediction_starts_from_the_previous_one_and_the_true_action(
    checkpoint: Path, image: ImageTokenizer
) -> None:
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=4))
    index = DatasetIndex.load(str(checkpoint.parents[3] / "data"))
    entry = next(e for e in index.episodes if e.key == done.overall.rollouts[0].episode)
    episode = read_episode(index, entry)
    actions = encode(episode.actions, index.action_ranges)
    text = np.array(shipped_text_tokenizer().encode(WORLD_TEXT), np.int32)
    codes = episode.codes["agent"][0].astype(int)
    for step in range(4):
        block = image_block(codes, PIXELS)
        assert PROMPTS[step] == world_prompt(text, block, actions[step]).tolist()
        codes = np.where(codes + 1 < CODEBOOK, codes + 1, 0)
    assert len(PROMPTS) == len(done.overall.frames) == 4


def test_guidance_is_towards_the_action_and_every_frame_has_its_own_seed(checkpoint: Path) -> None:
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=3, temperature=0.5, guidance=2.0, seed=7))
    for step, (sampling, guidance) in enumerate(REQUESTS):
        assert sampling == Sampling(0.5, seed=7, environments=[step])
        assert guidance.scale == 2.0
        prompt = PROMPTS[step]
        start = prompt.index(ACTION_START)
        assert np.asarray(guidance.prompts[0]).tolist() == prompt[:start] + prompt[start + 9 :]
    scores = json.loads(done.scores.read_text())
    assert [scores[key] for key in ("temperature", "guidance", "seed")] == [0.5, 2.0, 7]


def test_predictions_are_the_same_for_the_same_seed(
    checkpoint: Path, image: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    index = DatasetIndex.load(str(checkpoint.parents[3] / "data"))
    network = small_model(vocabulary_size=16_896, max_positions=512)
    model = loaded_model(index.url, image, network=network)
    episode = read_episode(index, index.episodes[0])

    def predicted(seed: int, scale: float) -> list[Any]:
        return predict(model, index, [episode], 2, Sampling(1.0, seed=seed), scale)[0].tolist()

    first = predicted(0, 3.0)
    assert np.shape(first) == (3, 1, 8, 8)
    assert predicted(0, 3.0) == first
    assert predicted(1, 3.0) != first
    assert predicted(0, 1.0) != first


def test_frames_are_greedy_and_unguided_by_default(checkpoint: Path) -> None:
    imagine(ImagineConfig(checkpoint=str(checkpoint), frames=1))
    sampling, guidance = REQUESTS[0]
    assert (sampling.temperature, guidance.scale) == (0.0, 1.0)


def test_held_out_episode_is_used_and_files_are_written_beside_the_evaluation(checkpoint: Path) -> None:
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=3))
    assert done.overall.rollouts[0].split == "val_ind"
    folder = checkpoint.parents[1] / "eval/step_00000100"
    assert [done.picture, done.video, done.scores] == [
        folder / name for name in ("imagine.png", "imagine.mp4", "imagine.json")
    ]
    picture = Image.open(done.picture)
    # Given frame, frames 1 and 3, at twice their size: true, predicted, error. Labels are beside them.
    frames_size = (3 * 130 - 2, 3 * 130 - 2)
    assert all(0 < side - frames < 130 for side, frames in zip(picture.size, frames_size, strict=True))
    with av.open(str(done.video)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert [frame.shape for frame in frames] == [(128, 256, 3)] * 4
    scores = json.loads(done.scores.read_text())
    assert scores["split"] == "val_ind"
    assert scores["psnr"] == pytest.approx(np.mean([frame["psnr"] for frame in scores["frames"]]))
    assert len(scores["frames"]) == 3
    assert scores["picture_frames"] == [0, 1, 3]
    assert done.first_psnr() == {
        "agent": {number: frame["psnr"] for number, frame in enumerate(scores["frames"], start=1)}
    }


@pytest.mark.parametrize(("average", "name"), [(False, "step_00000100"), (True, "step_00000100-trained")])
def test_trained_weights_do_not_replace_the_rollout_of_the_average(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, average: bool, name: str
) -> None:
    monkeypatch.setattr("eval.world_model.imagine.has_average", lambda _: average)
    config = ImagineConfig(checkpoint=str(checkpoint), frames=1, weights="trained")
    assert imagine(config).scores.parent.name == name


def test_gif_is_written_on_request(checkpoint: Path) -> None:
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=3))
    assert done.gif is None
    assert not list(done.video.parent.glob("*.gif"))
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=3, gif=True))
    path = done.video.with_suffix(".gif")
    assert done.gif == path
    with Image.open(path) as gif:
        assert (gif.format, gif.size, gif.info["duration"]) == ("GIF", (256, 128), 200)
        assert len(list(ImageSequence.Iterator(gif))) == 4
        gif.seek(0)
        shown = np.asarray(gif.convert("RGB"), np.float64)
    with av.open(str(done.video)) as video:
        in_video = next(video.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(shown - in_video).mean() < 10


def test_rollout_ends_with_the_episode(checkpoint: Path, tmp_path: Path) -> None:
    done = imagine(
        ImagineConfig(checkpoint=str(checkpoint), frames=99, episode="lift/demo_0", out=str(tmp_path / "o"))
    )
    assert len(done.overall.frames) == 6
    first = done.overall.rollouts[0]
    assert (first.episode, first.split) == ("lift/demo_0", "train")


def test_wrong_requests_are_refused(checkpoint: Path, image: ImageTokenizer) -> None:
    with pytest.raises(InputError, match="frames=0"):
        imagine(ImagineConfig(checkpoint=str(checkpoint), frames=0))
    with pytest.raises(InputError, match=r"temperature=-1\.0"):
        imagine(ImagineConfig(checkpoint="nowhere", temperature=-1.0))
    with pytest.raises(InputError, match="guidance scale nan"):
        imagine(ImagineConfig(checkpoint="nowhere", guidance=float("nan")))
    with pytest.raises(InputError, match="episode=nothing: not in"):
        imagine(ImagineConfig(checkpoint=str(checkpoint), episode="nothing"))


def test_exported_weights_are_refused_by_the_name_that_was_typed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError) as caught:
        imagine(ImagineConfig(checkpoint=str(tmp_path)))
    assert str(caught.value) == (
        f"checkpoint={tmp_path}: exported weights (config.json in it), which this command cannot use; "
        "give a checkpoint of the run, runs/<name>/checkpoints/step_..."
    )


def test_episodes_that_were_trained_on_are_not_called_held_out(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ImagineConfig(checkpoint=str(checkpoint), frames=1)
    assert imagine(config).overall.rollouts[0].split == "val_ind"
    model = world_model.load_model(checkpoint)
    everything = replace(model, data=replace(model.data, split="all"))
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: everything)
    done = imagine(config)
    assert done.overall.rollouts[0].split == json.loads(done.scores.read_text())["split"] == "train"


def test_without_held_out_episodes_the_last_one_is_used(tmp_path: Path, image: ImageTokenizer) -> None:
    write_file(
        tmp_path / "demos/lift_demo.hdf5", [demonstration(steps=4, seed=s) for s in range(2)], suite="s"
    )
    config = PrepareConfig(source=str(tmp_path / "demos"), out=str(tmp_path / "data"), resolution=PIXELS)
    assert choose_episodes(prepare(Preparer(config, image)), None)[0].key == "lift/demo_1"


def test_scores_match_their_definitions() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    codes = rng.integers(0, 9, (3, 2, 2))
    true_codes = codes.copy()
    true_codes[2, 0] += 1
    predicted = truth.copy()
    predicted[2] = np.clip(truth[2].astype(int) + rng.integers(-9, 10, truth[2].shape), 0, 255)
    exact, noisy = score(Videos.of_rollout(truth, predicted), true_codes, codes)
    assert (exact.psnr, exact.ssim, exact.code_accuracy) == (60.0, pytest.approx(1.0), 1.0)
    error = np.mean((predicted[2].astype(float) - truth[2]) ** 2)
    assert noisy.psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    held = np.mean((truth[0].astype(float) - truth[2]) ** 2)
    assert noisy.no_change_psnr == pytest.approx(10 * np.log10(255**2 / held), abs=1e-3)
    assert 0.5 < noisy.ssim < 1
    assert noisy.code_accuracy == 0.5
    assert exact.no_change_code_accuracy == (codes[0] == true_codes[1]).mean()


def test_episodes_predicted_side_by_side_equal_those_predicted_alone(
    checkpoint: Path, image: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    index = DatasetIndex.load(str(checkpoint.parents[3] / "data"))
    network = small_model(vocabulary_size=16_896, max_positions=512)
    model = loaded_model(index.url, image, network=network)
    episodes = [read_episode(index, entry) for entry in index.episodes[:3]]
    sampling = Sampling(1.0, seed=0)
    together = predict(model, index, episodes, 3, sampling)
    for number, episode in enumerate(episodes):
        alone = predict(model, index, [episode], 3, sampling, first=number)[0]
        np.testing.assert_array_equal(together[number], alone)


def test_several_episodes_are_scored_and_missing_metrics_are_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = DatasetIndex.load(str(checkpoint.parents[3] / "data")).episodes[:3]
    monkeypatch.setattr(world_model, "choose_episodes", lambda *_: several)
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=3, episodes=9, batch=2))
    assert [rollout.episode for rollout in done.overall.rollouts] == [entry.key for entry in several]
    content = json.loads(done.scores.read_text())
    assert content["not_computed"] == {
        "lpips": "lpips_weights is not set",
        "fvd": "fvd_network is not set",
    }
    assert content["lpips"] is None
    assert content["psnr"] == pytest.approx(np.mean([r["mean"]["psnr"] for r in content["rollouts"]]))
    assert content["horizons"] == []  # none is ten frames long


def test_contact_sheet_shows_at_most_twelve_frames() -> None:
    assert evenly_spaced(4).tolist() == [0, 1, 2, 3]
    shown = evenly_spaced(51)
    assert (len(shown), shown[0], shown[-1]) == (12, 0, 50)


def test_rollouts_are_shown_at_1_4_8_steps_and_doubled_ones() -> None:
    assert shown_frames(8) == [0, 1, 4, 8]
    assert shown_frames(3) == [0, 1, 3]
    assert shown_frames(50) == [0, 1, 4, 8, 16, 32, 50]


def test_contact_sheet_has_the_error_and_its_psnr_below_both_frames() -> None:
    truth = np.full((9, 128, 128, 3), 200, np.uint8)
    predicted = truth.copy()
    predicted[8, :, :64] = 180
    views = {"agent": ViewFrames(truth, predicted)}
    sheet = contact_sheet(views)
    error = sheet[-128:, -128:]  # of frame 8, in the lower right corner
    assert (error[:, :64] == 255 - 2 * 20).all()
    assert (error[:, 64:] == 255).all()
    np.testing.assert_array_equal(sheet[-258:-130, -128:], predicted[8])
    np.testing.assert_array_equal(sheet[-388:-260, -128:], truth[8])
    labelled = contact_sheet(views, {"agent": {8: 24.5}})
    changed = (labelled != sheet).any(axis=2)
    assert changed[-40:, -128:].any()
    changed[-40:, -128:] = False
    assert not changed.any(), "only the frame whose score is known has a text"


def test_tiles_are_in_order() -> None:
    frames = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1).repeat(3, axis=4)
    assert tile(frames)[::3, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
