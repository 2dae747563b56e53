"""World-model rollouts: what their numbers stand beside, which data they are of, and backbones that fail."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.cli.main import main
from data.config import DataConfig, MixtureSource
from data.contracts import Embodiment, Episode
from data.errors import InputError
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.stream.source_format import SourceFormat
from data.tokens.action import ActionRanges
from data.tokens.image import ImageTokenizer
from eval.config import ImagineConfig, ImagineDataConfig
from eval.world_model import imagine as world_model
from eval.world_model import results as results_module
from eval.world_model.imagine import imagine
from eval.world_model.lpips import Lpips
from eval.world_model.scores import Videos, score
from tests.support.imagine_case import (
    PROMPTS,
    image_tokenizer,
    loaded_model,
    prepare_data,
    recording_checkpoint,
)
from tests.support.independent_metrics import alexnet_weights


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


def test_the_score_of_predicting_no_change_stands_beside_every_score(checkpoint: Path) -> None:
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=4))
    content = json.loads(done.scores.read_text())
    index = DatasetIndex.load(str(checkpoint.parents[3] / "data"))
    entry = next(e for e in index.episodes if e.key == done.overall.rollouts[0].episode)
    codes = read_episode(index, entry).codes["agent"][:5].astype(np.int64)
    image: ImageTokenizer = world_model.load_model(checkpoint).image
    truth = image.decode(codes)
    still = Videos.of_rollout(truth, np.repeat(truth[:1], 5, axis=0))
    unchanged = score(still, codes, np.repeat(codes[:1], 5, axis=0))
    assert content["no_change_psnr"] == pytest.approx(np.mean([each.psnr for each in unchanged]))
    assert content["no_change_ssim"] == pytest.approx(np.mean([each.ssim for each in unchanged]))
    for name in ("psnr", "ssim", "code_accuracy"):
        assert [frame[f"no_change_{name}"] for frame in content["frames"]] == pytest.approx(
            [getattr(each, name) for each in unchanged]
        )
    summary = done.summary()
    assert set(summary) == {
        f"tokens/{prefix}{name}" for prefix in ("", "no_change_") for name in ("psnr", "ssim")
    }


def test_the_console_counts_frames_and_shows_the_baseline(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = DatasetIndex.load(str(checkpoint.parents[3] / "data")).episodes[:3]
    monkeypatch.setattr(world_model, "choose_episodes", lambda *_: entries)
    lengths = dict(zip([entry.key for entry in entries], (5, 7, 7), strict=True))
    monkeypatch.setattr(
        world_model,
        "read_episode",
        lambda index, entry: shortened(read_episode(index, entry), lengths[entry.key]),
    )
    assert main(["imagine", f"checkpoint={checkpoint}", "frames=99", "episodes=3"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"PSNR [\d.]+ dB \(no change: [\d.]+ dB\), SSIM [\d.]+ \(no change: [\d.]+\)", text)
    assert "over 16 frames of 3 episodes (4 to 6 each)" in text


def shortened(episode: Episode, length: int) -> Episode:
    codes = {camera: values[:length] for camera, values in episode.codes.items()}
    return replace(episode, codes=codes, actions=episode.actions[:length], states=episode.states[:length])


def test_results_name_what_the_scores_depend_on(checkpoint: Path) -> None:
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=1))
    content = json.loads(done.scores.read_text())
    model = world_model.load_model(checkpoint)
    assert content["policy_settings"] == model.settings.to_json()
    assert content["data"]["fingerprint"] == model.dataset
    assert content["notes"] == []


def test_data_that_was_moved_is_named_by_data_url(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image: ImageTokenizer
) -> None:
    moved = tmp_path / "moved"
    model = loaded_model(str(tmp_path / "data"), image)
    model = replace(model, data=DataConfig(url="runs/demo-data/shards"))
    (tmp_path / "data").rename(moved)
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: model)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError,
        match=rf"runs/demo-data/shards: no index\.json there .*relative to the present folder {tmp_path}.*; "
        "call it from the folder that the training was called from, or give data.url=FOLDER",
    ):
        imagine(ImagineConfig(checkpoint=str(checkpoint)))
    with pytest.raises(
        InputError, match=r"data\.url=nowhere: no index\.json there, relative to .*; give the"
    ):
        imagine(ImagineConfig(checkpoint=str(checkpoint), data=ImagineDataConfig("nowhere")))
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), data=ImagineDataConfig(str(moved)), frames=1))
    assert json.loads(done.scores.read_text())["data"]["url"] == str(moved)
    assert main(["imagine", f"checkpoint={checkpoint}", "frames=1", f"data.url={moved}"]) == 0


OTHER = ActionRanges(maximum=(0.5,) * 7)
ARM = SourceFormat(
    "arm", Embodiment("arm", ("one", "two"), ()), action_ranges=ActionRanges((0.0,) * 2, (1.0,) * 2)
)


def test_the_first_of_several_data_sets_is_taken(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image: ImageTokenizer
) -> None:
    model = loaded_model(str(tmp_path / "data"), image)
    sources = [MixtureSource(str(tmp_path / "data")), MixtureSource("elsewhere")]
    settings = replace(model.settings, sources=(ARM, replace(model.settings.source, name="data")))
    model = replace(model, data=DataConfig(sources=sources), dataset="of both", settings=settings)
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: model)
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=1))
    assert done.notes == ()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_tokenizer_sha256": "0" * 64}, "encoded with the image tokenizer"),
        ({"sources": (SourceFormat(action_ranges=OTHER),)}, "other action ranges"),
        ({"sources": (SourceFormat("a", action_ranges=OTHER), ARM)}, "other action ranges"),
        ({"sources": (ARM,)}, r"action of 7: x, .* trained on arm \(action of 2: one, two\)"),
    ],
)
def test_data_made_for_another_model_is_refused(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    image: ImageTokenizer,
    changed: dict[str, Any],
    message: str,
) -> None:
    model = loaded_model(str(tmp_path / "data"), image)
    model = replace(model, settings=replace(model.settings, **changed))
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: model)
    with pytest.raises(InputError, match=f"{message}.*; point data.url at the data set that the run"):
        imagine(ImagineConfig(checkpoint=str(checkpoint)))


def test_data_without_the_camera_is_refused_and_other_data_is_noted(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image: ImageTokenizer
) -> None:
    url = str(tmp_path / "data")
    other = loaded_model(url, image, data=DataConfig(url=url, cameras=["side"]))
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: other)
    with pytest.raises(InputError, match="no camera 'side', only agent"):
        imagine(ImagineConfig(checkpoint=str(checkpoint)))
    other = loaded_model(url, image, dataset="f" * 64)
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: other)
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=1))
    assert "not the one that the checkpoint was trained on" in done.notes[0]
    assert json.loads(done.scores.read_text())["notes"] == list(done.notes)


def test_backbones_that_cannot_be_used_are_refused_before_the_first_rollout(
    checkpoint: Path, tmp_path: Path
) -> None:
    network = tmp_path / "i3d.pt"
    torch.jit.script(OtherSignature()).save(str(network))
    with pytest.raises(InputError, match=r"fvd_network=.*: cannot be used on 10 frames, as FVD needs it"):
        imagine(ImagineConfig(checkpoint=str(checkpoint), fvd_network=str(network), frames=10))
    weights = tmp_path / "alexnet.pth"
    values = {name: torch.tensor(value) for name, value in alexnet_weights().items()}
    torch.save(values | {"features.0.bias": torch.full((64,), torch.nan)}, weights)
    with pytest.raises(InputError, match=r"lpips_weights=.*: cannot be used on frames of 64 px \(its dist"):
        imagine(ImagineConfig(checkpoint=str(checkpoint), lpips_weights=str(weights)))
    assert PROMPTS == []


class OtherSignature(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3, 4])


def test_rollouts_are_kept_when_a_score_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "alexnet.pth"
    torch.save({name: torch.tensor(v, dtype=torch.float32) for name, v in alexnet_weights().items()}, weights)
    entries = DatasetIndex.load(str(checkpoint.parents[3] / "data")).episodes[:2]
    monkeypatch.setattr(world_model, "choose_episodes", lambda *_: entries)
    calls: list[int] = []

    def forward(lpips: Lpips, frames: Tensor, others: Tensor) -> Tensor:
        calls.append(len(frames))
        if len(calls) > 4:  # the trial, both scores of the first episode, one of the second
            raise torch.OutOfMemoryError("no memory is left")
        return torch.zeros(len(frames))

    monkeypatch.setattr(Lpips, "forward", forward)
    request = [f"checkpoint={checkpoint}", "frames=3", "episodes=2", f"lpips_weights={weights}"]
    assert main(["imagine", *request]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "LPIPS failed: no memory is left; the rollouts and the other scores are in" in said
    folder = checkpoint.parents[1] / "eval/step_00000100"
    assert {path.name for path in folder.iterdir()} == {"imagine.png", "imagine.mp4", "imagine.json"}
    content = json.loads((folder / "imagine.json").read_text())
    assert content["not_computed"]["lpips"] == "failed: no memory is left"
    assert [frame["lpips"] for frame in content["frames"]] == [None] * 3
    assert content["psnr"] > 0


def test_scores_are_written_before_the_video(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results_module, "write_video", full)
    with pytest.raises(InputError, match="cannot write the rollout"):
        imagine(ImagineConfig(checkpoint=str(checkpoint), frames=2))
    folder = checkpoint.parents[1] / "eval/step_00000100"
    assert json.loads((folder / "imagine.json").read_text())["psnr"] > 0


def test_frames_too_few_for_fvd_are_said(checkpoint: Path, tmp_path: Path) -> None:
    network = tmp_path / "i3d.pt"
    torch.jit.script(MeanColour()).save(str(network))
    done = imagine(ImagineConfig(checkpoint=str(checkpoint), fvd_network=str(network), frames=3))
    assert json.loads(done.scores.read_text())["not_computed"]["fvd"] == "frames=3, needs at least 10"


class MeanColour(nn.Module):
    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return x.mean(dim=[2, 3, 4])
