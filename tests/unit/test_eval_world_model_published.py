"""World-model scores by the published protocol: camera frames, MP4, predictions encoded again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.cli.main import main
from data.config import PrepareConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.sources.interface import DemonstrationReference
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.tokens.image import ImageTokenizer
from data.tokens.image_block import image_block_length, image_codes
from data.tokens.vocabulary import IMAGE_START
from eval.config import ImagineConfig
from eval.report.page import write_report
from eval.world_model import imagine as world_model
from eval.world_model import rollout
from eval.world_model.imagine import imagine
from eval.world_model.lpips import Lpips
from eval.world_model.mp4 import through_mp4
from eval.world_model.published_scores import protocol_of
from tests.support import independent_metrics as independent
from tests.support.imagine_case import (
    CODEBOOK,
    PIXELS,
    PROMPTS,
    add_one,
    image_tokenizer,
    loaded_model,
    prepare_data,
    recording_checkpoint,
)
from tests.support.lerobot_layout import recorded, write_lerobot
from tests.support.libero_layout import demonstration, write_file

EPISODE = "lift/demo_7"


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


def request(folder: Path, **changed: object) -> ImagineConfig:
    config = ImagineConfig(
        checkpoint=str(folder), frames=3, episode=EPISODE, protocol="published",
        source=str(folder.parents[3] / "demos"),
    )  # fmt: skip
    for name, value in changed.items():
        setattr(config, name, value)
    return config


def camera_frames(checkpoint: Path, count: int) -> NDArray[np.uint8]:
    """The recorded frames of the episode, rotated as LIBERO's are."""
    with h5py.File(checkpoint.parents[3] / "demos/lift_demo.hdf5") as file:
        recorded = np.asarray(file["data/demo_7/obs/agentview_rgb"])
    return recorded[:count, ::-1, ::-1]


def following(codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """What the world model of these tests predicts."""
    return np.where(codes + 1 < CODEBOOK, codes + 1, 0)


def test_scores_are_those_of_camera_frames_read_back_from_mp4(
    checkpoint: Path, image: ImageTokenizer
) -> None:
    done = imagine(request(checkpoint))
    camera = camera_frames(checkpoint, 4)
    inputs, codes = image.encode(camera[:1]), [image.encode(camera[:1])[0]]
    for _ in range(3):
        codes.append(following(inputs)[0])
        inputs = image.encode(image.decode(codes[-1][None]))
    predicted = [camera[0], *image.decode(np.stack(codes))[1:]]
    still = np.repeat(camera[:1], 4, axis=0)
    true, others, unchanged = map(through_mp4, (camera, np.stack(predicted), still))
    content = json.loads(done.scores.read_text())
    assert len(content["frames"]) == 4  # the given frame counts
    for prefix, frames in (("", others), ("no_change_", unchanged)):
        for name, definition in (
            ("psnr", independent.psnr_published),
            ("ssim", independent.ssim_filtered),
        ):
            expected = [definition(*pair) for pair in zip(true, frames, strict=True)]
            found = [frame[f"{prefix}{name}"] for frame in content["frames"]]
            assert found == pytest.approx(expected, abs=1e-9)
    assert content["frames"][0]["code_accuracy"] == 1.0


def test_every_prediction_is_encoded_again_before_it_is_the_next_input(
    checkpoint: Path, image: ImageTokenizer
) -> None:
    imagine(request(checkpoint))
    index = DatasetIndex.load(str(checkpoint.parents[3] / "data"))
    entry = next(each for each in index.episodes if each.key == EPISODE)
    expected = read_episode(index, entry).codes["agent"][:1].astype(np.int64)
    for prompt in PROMPTS:
        start = prompt.index(IMAGE_START)
        shown = image_codes(np.array(prompt[start : start + image_block_length(8, 8)]))
        np.testing.assert_array_equal(shown, expected[0])
        expected = image.encode(image.decode(following(expected))).astype(np.int64)
    assert len(PROMPTS) == 3
    second = PROMPTS[1][PROMPTS[1].index(IMAGE_START) :][: image_block_length(8, 8)]
    first = PROMPTS[0][PROMPTS[0].index(IMAGE_START) :][: image_block_length(8, 8)]
    assert (image_codes(np.array(second)) != following(image_codes(np.array(first)))).any()


def test_the_video_is_lossy_and_has_256_pixels() -> None:
    frames = independent.scene(3)[1]
    read = through_mp4(frames)
    assert (read.shape, read.dtype) == ((4, 256, 256, 3), np.uint8)
    large = np.kron(frames, np.ones((1, 4, 4, 1), np.uint8))
    read = through_mp4(large)
    error = np.abs(read.astype(float) - large)
    assert 0 < error.mean() < 8


def test_what_is_missing_is_said_in_one_line(checkpoint: Path) -> None:
    with pytest.raises(InputError) as missing:
        imagine(request(checkpoint, source="", checkpoint="nowhere"))
    assert str(missing.value) == (
        "protocol=published: compares with the camera's frames, which shards do not hold; add "
        "source=FOLDER, the demonstrations that the data set was prepared from"
    )
    with pytest.raises(InputError, match=r"source=.*demos: protocol=tokens reads no demonstrations; leave"):
        imagine(request(checkpoint, protocol="tokens"))
    with pytest.raises(InputError, match=r"^replay=true: protocol=tokens reads no demonstrations"):
        imagine(request(checkpoint, protocol="tokens", source="", replay=True))
    with pytest.raises(InputError, match="replay=true: needs a simulator"):
        imagine(request(checkpoint, replay=True))
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        imagine(request(checkpoint, source="nowhere"))
    assert PROMPTS == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("other frames", r"its frames encode to other codes than the episode's: \d+\.\d %, at most 5 % is"),
        ("other actions", "its actions are not those of the episode"),
        ("shorter", "6 of its steps move the robot, the episode has 7"),
        ("gone", "there is no such demonstration, but lift/demo_0, lift/demo_1, lift/demo_2, ..."),
    ],
)
def test_demonstrations_that_are_not_those_of_the_data_are_refused(
    checkpoint: Path, change: str, message: str
) -> None:
    with h5py.File(checkpoint.parents[3] / "demos/lift_demo.hdf5", "r+") as file:
        data = file["data"]
        assert isinstance(data, h5py.Group)
        if change == "gone":
            del data["demo_7"]
        elif change == "other frames":  # one time step later
            frames = data["demo_7/obs/agentview_rgb"]
            assert isinstance(frames, h5py.Dataset)
            frames[:-1] = frames[1:]
        else:
            actions = data["demo_7/actions"]
            assert isinstance(actions, h5py.Dataset)
            actions[3] = 0.0 if change == "shorter" else actions[4]
            if change == "shorter":
                actions[3, 6] = -1
    with pytest.raises(InputError, match=message) as caught:
        imagine(request(checkpoint))
    assert str(caught.value).startswith(f"source={checkpoint.parents[3] / 'demos'}: {EPISODE}: ")
    assert "give source and settings (rotate, fit, cameras, replay) as the data set" in str(caught.value)
    assert PROMPTS == []


def test_other_settings_than_those_of_the_data_are_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="its frames encode to other codes than the episode's"):
        imagine(request(checkpoint, rotate=False))
    done = imagine(request(checkpoint, resize="lanczos"))  # nothing is resized here
    assert done.protocol == "published"


def test_frames_are_resized_as_those_of_the_data_were(
    tmp_path: Path, image: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    demonstrations = [demonstration(steps=3, seed=seed, pixels=80) for seed in range(8)]
    write_file(tmp_path / "demos/lift_demo.hdf5", demonstrations, suite="robosuite_lift")
    config = PrepareConfig(
        source=str(tmp_path / "demos"), out=str(tmp_path / "data"), resolution=PIXELS, resize="lanczos"
    )
    prepare(Preparer(config, image))
    model = loaded_model(str(tmp_path / "data"), image)
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: model)
    monkeypatch.setattr(rollout, "decode_images", add_one)
    checkpoint = tmp_path / "runs/demo/checkpoints/step_00000100"
    with pytest.raises(InputError, match=r"resize=box_bicubic: .* resized with lanczos; give resize=lanczos"):
        imagine(request(checkpoint, frames=1))
    assert imagine(request(checkpoint, frames=1, resize="lanczos")).protocol == "published"


@pytest.mark.parametrize("stored", ["video", "image"])
def test_demonstrations_may_have_another_format(
    stored: str, tmp_path: Path, image: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lerobot(tmp_path / "demos", "v3.0", [recorded(steps=4, seed=seed) for seed in range(3)], stored)
    config = PrepareConfig(source=str(tmp_path / "demos"), out=str(tmp_path / "data"), resolution=PIXELS)
    (first, *_) = prepare(Preparer(config, image)).episodes
    model = loaded_model(str(tmp_path / "data"), image)
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: model)
    monkeypatch.setattr(rollout, "decode_images", add_one)
    checkpoint = tmp_path / "runs/demo/checkpoints/step_00000100"
    done = imagine(request(checkpoint, episode=first.key, frames=2))
    assert len(done.overall.frames) == 3
    assert done.overall.frames[0].psnr > 30  # the given frame, after the video


def test_frames_of_replays_are_compared_where_the_data_are_of_replays(checkpoint: Path) -> None:
    replayed: list[str] = []
    recorded = camera_frames(checkpoint, 7)
    with h5py.File(checkpoint.parents[3] / "demos/lift_demo.hdf5") as file:
        actions = np.asarray(file["data/demo_7/actions"])

    def replay(reference: DemonstrationReference, pixels: int) -> Demonstration | None:
        replayed.append(reference.key)
        states = np.zeros((7, 8), np.float32)
        return Demonstration(
            reference.key, "lift", "lift", "lift the cube", {"agent": recorded}, actions, states
        )

    done = imagine(request(checkpoint, replay=True), replay=replay)
    assert replayed == [EPISODE]
    assert done.overall.mean == imagine(request(checkpoint)).overall.mean
    with pytest.raises(InputError, match="its replay does not succeed"):
        imagine(request(checkpoint, replay=True), replay=lambda reference, pixels: None)


def test_both_protocols_stand_side_by_side_and_say_which_they_are(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint.parents[1] / "config.yaml").parent.mkdir(parents=True)
    (checkpoint.parents[1] / "config.yaml").write_text("run: {name: demo}\n")
    index = DatasetIndex.load(str(checkpoint.parents[3] / "data"))
    goal = [next(each for each in index.episodes if each.key == EPISODE)]
    monkeypatch.setattr(world_model, "choose_episodes", lambda *_: goal)
    tokens = imagine(ImagineConfig(checkpoint=str(checkpoint), frames=3))
    arguments = [f"checkpoint={checkpoint}", "frames=3", "protocol=published"]
    assert main(["imagine", *arguments, f"source={checkpoint.parents[3] / 'demos'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "over 4 frames, protocol published, the first lift/demo_7" in said
    assert "measured here as in the script that RynnVLA-002's authors have published" in said
    published = tokens.scores.with_name("imagine_published.json")
    contents = [json.loads(path.read_text()) for path in (tokens.scores, published)]
    assert [content["protocol"] for content in contents] == ["tokens", "published"]
    assert [content["demonstrations"] is None for content in contents] == [True, False]
    assert [len(content["frames"]) for content in contents] == [3, 4]
    assert set(tokens.summary()) == {f"tokens/{name}" for name in _names()}
    page = write_report(checkpoint.parents[1]).read_text()
    shown = re.findall(r'<p class="explain">Protocol (\w+), view agent\. Top: ([^.]*)\.', page)
    assert shown == [
        ("tokens", "the true frames, as decoded by the image tokenizer"),
        ("published", "the camera&#39;s frames"),
    ]


def _names() -> list[str]:
    return [f"{prefix}{name}" for prefix in ("", "no_change_") for name in ("psnr", "ssim")]


def test_published_scores_stand_beside_ours(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    horizon = {"frames": 10, "episodes": 3, "psnr": 26.2, "ssim": 0.96, "no_change_psnr": 27.1}
    content = {"protocol": "published", "horizons": [horizon], "frames": []}
    suites = {"published_by_suite": {"libero_goal": {}, "unknown": {}}}
    done = imagine(request(checkpoint, out=str(folder)))
    done.scores.write_text(json.dumps(content | suites))
    page = write_report(folder).read_text()
    rows = {
        name: re.findall(r'<td class="n">(.*?)</td>', cells)
        for name, cells in re.findall(r"<tr><td>([^<]*)</td>(.*?)</tr>", page)
    }
    assert rows == {
        "this checkpoint": ["10", "3", "-", "26.2", "0.96", "-"],
        "no change": ["10", "3", "-", "27.1", "-", "-"],
        "published: WorldVLA *": ["10", "", "255", "29.8", "0.904", "0.119"],
        "published: RynnVLA-002, libero_goal *": ["", "", "337", "22.1", "0.781", "0.194"],
    }
    assert protocol_of({}) == "tokens"  # of earlier versions


def test_lpips_is_of_frames_from_the_video_and_its_weights_are_those_of_vgg(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {}
    for name, layers in (("alexnet", independent.ALEXNET), ("vgg", independent.VGG16)):
        weights = independent.network_weights(layers)
        paths[name] = tmp_path / f"{name}.pth"
        torch.save({key: torch.tensor(v, dtype=torch.float32) for key, v in weights.items()}, paths[name])
    with pytest.raises(InputError, match=r"not torchvision's AlexNet .*; give alexnet-owt-7be5be79\.pth"):
        imagine(ImagineConfig(checkpoint=str(checkpoint), lpips_weights=str(paths["vgg"])))
    with pytest.raises(InputError, match=r"not torchvision's VGG-16 .*; give vgg16-397923af\.pth"):
        imagine(request(checkpoint, lpips_weights=str(paths["alexnet"])))
    shapes: list[tuple[int, ...]] = []

    def forward(lpips: Lpips, frames: Tensor, others: Tensor) -> Tensor:
        shapes.append(tuple(frames.shape))
        return torch.full((len(frames),), 0.25)

    monkeypatch.setattr(Lpips, "forward", forward)
    done = imagine(request(checkpoint, frames=1, lpips_weights=str(paths["vgg"])))
    assert shapes == [(1, 256, 256, 3), (2, 256, 256, 3), (2, 256, 256, 3)]  # trial, predicted, unchanged
    assert [frame.lpips for frame in done.overall.frames] == [0.25, 0.25]


def test_nothing_is_left_in_the_folder_for_temporary_files(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    imagine(request(checkpoint, frames=1))
    assert list(folder.iterdir()) == []
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="a video for the published protocol cannot be written"):
        imagine(request(checkpoint, frames=1))
