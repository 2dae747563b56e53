"""World-model rollouts of several cameras: their scores, pictures and demonstrations."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import h5py
import numpy as np
import pytest
from PIL import Image

from cluster.cli.main import main
from data.config import DataConfig, MixtureSource, PrepareConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.sources.interface import DemonstrationReference
from data.tokens.image import ImageTokenizer
from eval.report.page import write_report
from eval.world_model import imagine as world_model
from eval.world_model.horizons import HorizonScore, mean_of_horizons
from eval.world_model.imagine import imagine
from eval.world_model.score_text import scores_text
from eval.world_model.table import scores_table
from eval.world_model.view_scores import ViewScores
from tests.support.imagine_case import (
    BOTH,
    EPISODE,
    PIXELS,
    PROMPTS,
    image_tokenizer,
    loaded_model,
    prepare_data,
    recording_checkpoint,
    requested,
)
from tests.support.libero_layout import demonstration, write_file


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


@pytest.mark.parametrize("protocol", ["tokens", "published"])
def test_scores_of_each_view_are_those_of_the_camera_alone(
    checkpoint: Path, protocol: str, tmp_path: Path, image: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = 1 if protocol == "published" else 4  # its videos are large
    both = imagine(requested(checkpoint, protocol, frames=frames))
    content = json.loads(both.scores.read_text())
    assert content["cameras"] == [view["view"] for view in content["views"]] == BOTH
    alone = {}
    url = str(tmp_path / "data")
    for camera in BOTH:
        model = loaded_model(url, image, data=DataConfig(url=url, cameras=[camera]))
        monkeypatch.setattr(world_model, "load_model", lambda path, model=model, **_: model)
        alone[camera] = imagine(requested(checkpoint, protocol, frames=frames, out=str(tmp_path / camera)))
        assert both.views[camera] == alone[camera].overall
        single = json.loads(alone[camera].scores.read_text())
        assert (single["cameras"], single["views"]) == ([camera], [])
        assert next(view for view in content["views"] if view["view"] == camera)["psnr"] == single["psnr"]
    agent, wrist = (alone[camera].overall.mean for camera in BOTH)
    assert agent != wrist
    for name, value in asdict(both.overall.mean).items():
        if value is None:
            assert name.endswith("lpips")
        else:
            assert value == pytest.approx((getattr(agent, name) + getattr(wrist, name)) / 2)
    assert content["psnr"] == pytest.approx((agent.psnr + wrist.psnr) / 2)
    summary = both.summary()
    assert summary[f"{protocol}/psnr"] == content["psnr"]
    assert summary[f"{protocol}/wrist/no_change_ssim"] == wrist.no_change_ssim
    assert set(alone["agent"].summary()) == {name for name in summary if name.count("/") == 1}


def test_picture_and_videos_show_every_view_with_its_name(checkpoint: Path) -> None:
    done = imagine(requested(checkpoint, frames=3, gif=True))
    with Image.open(done.picture) as picture:
        # true, predicted and error, agent and wrist, below their numbers
        assert picture.height - (6 * 130 - 2) == 32
        shown = np.asarray(picture)[32:, -(3 * 130 - 2) :]
    views = {view: frames for view, frames in zip(BOTH, (0, 3 * 130), strict=True)}
    given = {view: shown[top : top + 128, :128] for view, top in views.items()}
    for view, top in views.items():  # the given frame begins the true and the predicted row
        np.testing.assert_array_equal(given[view], shown[top + 130 : top + 258, :128])
    assert (given["agent"] != given["wrist"]).any()
    with av.open(str(done.video)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 4
    assert all(side % 2 == 0 for side in frames[0].shape[:2])
    assert frames[0].shape[0] > 2 * 128
    assert frames[0].shape[1] > 2 * 128
    assert done.gif is not None
    with Image.open(done.gif) as gif:
        assert gif.size == (frames[0].shape[1], frames[0].shape[0])


def test_console_and_report_name_the_views(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = [f"checkpoint={checkpoint}", "frames=3", f"episode={EPISODE}"]
    assert main(["imagine", *request]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"PSNR [\d.]+ dB \(no change: [\d.]+ dB; agent [\d.]+, wrist [\d.]+\), .* over 3 frames in 2 views",
        said,
    )
    assert "protocol tokens, views agent and wrist" in said
    table = said[said.index("protocol tokens, views agent and wrist") :]
    assert re.search(r"agent .*published: WorldVLA 10 \*", table)
    assert "mean of views" not in table  # three frames give no row, so no name of one
    page = write_report(checkpoint.parents[1] / "eval/step_00000100").read_text()
    assert "Protocol tokens, views agent, wrist. In each three rows, above: the true frames" in page
    titles = re.findall(r'<span class="title">(PSNR by predicted frame.*?)</span>', page)
    assert titles == ["PSNR by predicted frame, agent", "PSNR by predicted frame, wrist"]


def horizon(**changed: Any) -> HorizonScore:
    values: dict[str, Any] = {
        f"{prefix}{name}": 1.0 for prefix in ("", "no_change_") for name in ("psnr", "ssim", "lpips", "fvd")
    }
    others = {"frames": 10, "episodes": 3, "not_computed": {}, "published": {"psnr": 29.77}}
    return HorizonScore(**{**values, **others, "published_protocol": "by another", **changed})


def test_the_mean_of_views_is_of_scores_that_all_of_them_have() -> None:
    mean = mean_of_horizons(
        [horizon(psnr=20.0), horizon(psnr=30.0, fvd=None, not_computed={"fvd": "failed: no memory"})]
    )
    assert (mean.frames, mean.episodes, mean.psnr, mean.ssim) == (10, 3, 25.0, 1.0)
    assert (mean.fvd, mean.no_change_fvd) == (None, 1.0)
    assert mean.not_computed == {"fvd": "failed: no memory"}
    assert mean.published == {}  # WorldVLA has no such scores


def test_table_names_each_view_above_its_rows() -> None:
    scores = ViewScores((), (horizon(),))
    result: Any = SimpleNamespace(
        protocol="tokens", suites=(), views=dict.fromkeys(BOTH, scores), overall=scores, notes=()
    )
    ours = ["10", "no change 10"]
    assert list(scores_table(result).columns[0].cells) == [
        "[bold]agent", *ours, "[dim]published: WorldVLA 10 *", "[dim]published: WorldVLA 50 *",
        "[bold]wrist", *ours, "[bold]mean of views", *ours,
    ]  # fmt: skip


def test_published_scores_stand_beside_the_view_that_they_are_of(checkpoint: Path) -> None:
    done = imagine(requested(checkpoint, frames=3))
    content = json.loads(done.scores.read_text())
    row = {"frames": 10, "episodes": 3, "psnr": 26.2, "no_change_psnr": 27.1}
    views = [{"view": view, "frames": [], "horizons": [row]} for view in BOTH]
    done.scores.write_text(json.dumps(content | {"horizons": [row], "views": views}))
    page = write_report(done.scores.parent).read_text()
    names = re.findall(r'<tr><td>([^<]*)</td><td class="n">10</td>', page)
    assert names == [
        "this checkpoint, agent", "no change, agent", "published: WorldVLA *", "this checkpoint, wrist",
        "no change, wrist", "this checkpoint, mean of views", "no change, mean of views",
    ]  # fmt: skip
    done.scores.write_text(json.dumps(content | {"cameras": ["wrist"], "views": [], "horizons": [row]}))
    page = write_report(done.scores.parent).read_text()
    assert "Protocol tokens, view wrist. Top: the true frames" in page
    assert "published: WorldVLA" not in page
    assert "published scores follow another protocol" not in page


def test_results_of_an_earlier_version_are_shown_without_a_view(checkpoint: Path) -> None:
    done = imagine(requested(checkpoint, frames=3))
    content = json.loads(done.scores.read_text())
    del content["cameras"], content["views"], content["picture_frames"]
    content["horizons"] = [{"frames": 10, "episodes": 1, "psnr": 26.2}]
    done.scores.write_text(json.dumps(content))
    page = write_report(done.scores.parent).read_text()
    assert "Protocol tokens. Top: the true frames, as decoded by the image tokenizer. Bottom" in page
    assert re.findall(r'<tr><td>([^<]*)</td><td class="n">10</td>', page) == [
        "this checkpoint", "no change", "published: WorldVLA *",
    ]  # fmt: skip
    assert '<span class="title">PSNR by predicted frame</span>' in page
    assert "views" not in scores_text(content)


def test_replayed_frames_of_every_camera_are_compared(checkpoint: Path) -> None:
    with h5py.File(checkpoint.parents[3] / "demos/lift_demo.hdf5") as file:
        frames = {
            camera: np.asarray(file[f"data/demo_7/obs/{name}"])[:, ::-1, ::-1]
            for camera, name in (("agent", "agentview_rgb"), ("wrist", "eye_in_hand_rgb"))
        }
        actions = np.asarray(file["data/demo_7/actions"])

    def replay(reference: DemonstrationReference, pixels: int) -> Demonstration:
        states = np.zeros((7, 8), np.float32)
        return Demonstration(reference.key, "lift", "lift", "lift the cube", frames, actions, states)

    request = requested(checkpoint, "published", frames=1)
    replayed = imagine(replace(request, replay=True), replay=replay)
    assert replayed.views == imagine(request).views
    frames["wrist"] = np.roll(frames["wrist"], 1, axis=0)
    with pytest.raises(InputError, match=r"its frames of camera wrist encode to other codes .* rounding"):
        imagine(replace(request, replay=True), replay=replay)


def test_a_camera_that_is_missing_is_named_before_anything_starts(
    checkpoint: Path, tmp_path: Path, image: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [demonstration(steps=7, seed=seed) for seed in range(12)]
    for each in arrays:
        del each["obs/eye_in_hand_rgb"]
    write_file(tmp_path / "agent/demos/lift_demo.hdf5", arrays, suite="robosuite_lift")
    source, out = str(tmp_path / "agent/demos"), str(tmp_path / "agent/data")
    prepare(Preparer(PrepareConfig(source=source, out=out, resolution=PIXELS), image))
    with pytest.raises(InputError) as of_source:
        imagine(requested(checkpoint, "published", source=source))
    assert str(of_source.value).startswith(
        f"source={source}: {EPISODE}: it has no camera 'wrist', only agent; give source and settings"
    )
    config = requested(checkpoint)
    config.data.url = out
    with pytest.raises(InputError) as of_data:
        imagine(config)
    message = (
        f"{out}: no camera 'wrist', only agent; the run has agent, wrist; point data.url at the data set "
        "that the run was trained on"
    )
    assert str(of_data.value) == message
    model = world_model.load_model(checkpoint)
    mixed = replace(model.data, url="???", sources=[MixtureSource(out), MixtureSource(model.data.url)])
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: replace(model, data=mixed))
    with pytest.raises(InputError) as of_mixture:
        imagine(requested(checkpoint))
    assert str(of_mixture.value) == message
    assert PROMPTS == []
