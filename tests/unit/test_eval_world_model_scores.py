"""LPIPS, FVD and the scores over 10 and 50 frames, against definitions and torchmetrics' own code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from data.errors import InputError
from eval.world_model.fvd import VideoFeatures, frechet_distance
from eval.world_model.horizons import ScoredRollout, horizon_scores
from eval.world_model.lpips import Lpips
from eval.world_model.protocol import PUBLISHED
from eval.world_model.score_text import frames_text, scores_text
from eval.world_model.scores import FrameScore, Videos, check_pixels, mean_score, score
from eval.world_model.view_scores import ViewScores
from tests.support import independent_metrics as independent


@pytest.fixture(scope="module")
def alexnet() -> nn.Sequential:
    """torchvision's `alexnet().features`, with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


@pytest.fixture
def weights(alexnet: nn.Sequential, tmp_path: Path) -> Path:
    path = tmp_path / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in alexnet.state_dict().items()}, path)
    return path


def frames(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


MISSING = {"lpips": "lpips_weights is not set"}


def codes(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.zeros((count, 2, 2), np.int64), np.zeros((count, 2, 2), np.int64)


def scored(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> ScoredRollout:
    videos = Videos.of_rollout(truth, predicted)
    return ScoredRollout(videos, score(videos, *codes(len(truth))))


def test_lpips_is_that_of_torchmetrics(
    weights: Path, alexnet: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchmetrics.functional.image.lpips as published  # many modules: not while tests are collected

    monkeypatch.setattr(published, "_get_tv_model_features", lambda net, pretrained: alexnet)
    reference = published._LPIPS(pretrained=True, net="alex")
    one, other = torch.as_tensor(frames(3)), torch.as_tensor(frames(3, seed=1))
    to_input = [x.permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (one, other)]
    expected = reference(*to_input).flatten()
    distances = Lpips(weights)(one, other)
    torch.testing.assert_close(distances, expected)
    assert (distances > 0.01).all()
    assert Lpips(weights)(one, one).abs().max() == 0


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "alexnet.pth"
    with pytest.raises(InputError, match=r"alexnet\.pth: cannot be read as weights"):
        Lpips(path)
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"lpips_weights=.*not torchvision's AlexNet"):
        Lpips(path)
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="cannot be read as weights"):
        Lpips(path)


def test_frechet_distance_of_known_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 2) == pytest.approx(12, abs=1e-9)  # 3 dimensions x 2^2
    # Scaled by 3: the trace of C + 9 C - 2 * 3 C is 4 tr C.
    expected = float(4 * torch.cov(one.T).trace() + 4 * (one.mean(dim=0) ** 2).sum())
    assert frechet_distance(one, 3 * one) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="two features"):
        frechet_distance(one[:1], one)


def test_frechet_distance_is_that_of_the_matrix_root() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) @ rng.normal(size=(5, 5)) + 1
    covariances = [np.cov(x.T) for x in (one, other)]
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    expected = np.sum((one.mean(0) - other.mean(0)) ** 2) + np.trace(sum(covariances) - 2 * root)
    assert frechet_distance(torch.as_tensor(one), torch.as_tensor(other)) == pytest.approx(expected)


class MeanColour(nn.Module):
    """Called as the I3D file is; the features are means over the video."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert rescale and resize and return_features  # noqa: PT018
        return x.mean(dim=[2, 3, 4])


def test_scores_are_over_the_first_frames_of_rollouts_that_are_long_enough(tmp_path: Path) -> None:
    network = tmp_path / "i3d.pt"
    torch.jit.script(MeanColour()).save(str(network))
    rollouts = []
    for seed, length in enumerate((12, 60, 60)):
        truth = frames(length + 1, seed)
        predicted = np.where(np.arange(length + 1)[:, None, None, None] > 10, 0, truth).astype(np.uint8)
        rollouts.append(scored(truth, predicted))
    short, long = horizon_scores(rollouts, MISSING, VideoFeatures(network))
    assert (short.frames, short.episodes, short.psnr) == (10, 3, 60.0)
    assert short.fvd == pytest.approx(0, abs=1e-6)
    assert (long.frames, long.episodes) == (50, 2)
    assert long.psnr < 30
    assert long.fvd is not None
    assert long.fvd > 1000  # black frames
    assert long.lpips is None
    assert long.not_computed == {"lpips": "lpips_weights is not set"}
    assert long.published["psnr"] == 24.30
    assert "another protocol" in long.published_protocol
    still = [
        each._replace(videos=each.videos._replace(predicted=each.videos.unchanged)) for each in rollouts[1:]
    ]
    assert long.no_change_fvd == pytest.approx(horizon_scores(still, MISSING, VideoFeatures(network))[1].fvd)
    assert long.no_change_psnr == pytest.approx(
        mean_score(rollouts[1].scores[:50] + rollouts[2].scores[:50]).no_change_psnr
    )
    (alone,) = horizon_scores(rollouts[:1], MISSING, VideoFeatures(network))
    assert alone.not_computed["fvd"] == "1 video, needs at least 2"
    without = horizon_scores(rollouts[:1], {**MISSING, "fvd": "fvd_network is not set"}, None)[0]
    assert without.not_computed["fvd"] == "fvd_network is not set"


def test_published_horizons_count_the_given_frame_and_divide_by_n(tmp_path: Path) -> None:
    network = tmp_path / "i3d.pt"
    torch.jit.script(MeanColour()).save(str(network))
    videos = [
        Videos.of_rollout(frames(10, seed), frames(10, seed + 50) // (1 + seed % 3), PUBLISHED.first)
        for seed in range(8)
    ]
    rollouts = [ScoredRollout(each, score(each, *codes(10), None, PUBLISHED)) for each in videos]
    (horizon,) = horizon_scores(rollouts, MISSING, VideoFeatures(network), PUBLISHED)
    assert (horizon.frames, horizon.episodes) == (10, 8)  # nine predictions each
    features = [
        np.stack([getattr(each, name).mean(axis=(0, 1, 2)) for each in videos])
        for name in ("truth", "predicted", "unchanged")
    ]
    for value, others in ((horizon.fvd, features[1]), (horizon.no_change_fvd, features[2])):
        expected = independent.frechet_distance(features[0], others, freedom=0)
        assert value == pytest.approx(expected, rel=1e-4)
        assert value != pytest.approx(independent.frechet_distance(features[0], others), rel=1e-3)
    assert "measured here as in the script" in horizon.published_protocol
    assert horizon.published["fvd"] == 255.1


class OtherSignature(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3, 4])


class LongClips(nn.Module):
    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert x.shape[2] >= 16, "clips have at least 16 frames"
        return x.mean(dim=[2, 3, 4])


class OneNumber(nn.Module):
    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return x.mean()[None]


class NotFinite(nn.Module):
    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return x.mean(dim=[2, 3, 4]) / x.sum()


@pytest.mark.parametrize(
    ("network", "lengths", "reason"),
    [
        (OtherSignature(), [10], r"10 frames, .*rescale"),
        (LongClips(), [10, 50], r"10 frames, .*clips have at least 16 frames"),
        (OneNumber(), [10], r"10 frames, .*its features have shape \[1\], expected \[1, D\]"),
        (NotFinite(), [10], "10 frames, .*its features are not finite numbers"),
    ],
    ids=["signature", "short clips", "one number", "not finite"],
)
def test_a_network_that_cannot_be_used_is_refused_in_one_line(
    network: nn.Module, lengths: list[int], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "i3d.pt"
    torch.jit.script(network).save(str(path))
    with pytest.raises(InputError, match=rf"^eval\.fvd_network={path}: cannot be used on {reason}") as raised:
        VideoFeatures(path, "eval.fvd_network").check(lengths)
    assert "\n" not in str(raised.value)
    torch.jit.script(MeanColour()).save(str(path))
    VideoFeatures(path).check([10, 50])


def test_file_that_is_not_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        VideoFeatures(tmp_path / "i3d.pt")
    (tmp_path / "i3d.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a TorchScript file"):
        VideoFeatures(tmp_path / "i3d.pt")


def test_mean_ignores_scores_that_were_not_computed() -> None:
    mean = mean_score([FrameScore(20, 0.5, 0.5, 10, 0.3, 0.1, 0.2), FrameScore(30, 0.7, 1.0, 20, 0.5, 0.3)])
    assert (mean.psnr, mean.ssim, mean.code_accuracy) == pytest.approx((25, 0.6, 0.75))
    assert (mean.no_change_psnr, mean.no_change_ssim) == pytest.approx((15, 0.4))
    assert mean.no_change_code_accuracy == pytest.approx(0.2)
    assert (mean.lpips, mean.no_change_lpips) == (0.2, None)
    assert mean_score([FrameScore(20, 0.5, 0.5, 10, 0.3, 0.1)]).lpips is None


def test_table_has_the_baseline_and_marks_what_is_not_comparable() -> None:
    from types import SimpleNamespace
    from typing import Any

    from eval.world_model.table import scores_table

    scores = (FrameScore(21.5, 0.5, 0.5, 26.75, 0.6, 0.1),) * 10
    truth = frames(11)
    missing = {"lpips": "lpips_weights is not set", "fvd": "fvd_network is not set"}
    rollouts = [ScoredRollout(Videos.of_rollout(truth, truth), scores)]
    view = ViewScores((), tuple(horizon_scores(rollouts, missing, None)))
    result: Any = SimpleNamespace(
        protocol="tokens",
        suites=("libero_goal",),
        views={"agent": view},
        notes=("unverified [files]",),
    )
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(scores_table(result))
    text = " ".join(console.export_text().split())
    assert "21.50" in text
    assert re.search(r"no change 10 \W+ 1 \W+ not computed \W+ 26.75", text)
    assert "published: WorldVLA 50 *" in text
    assert "* published scores follow another protocol and are not comparable" in text
    assert "unverified [files]" in text
    assert "not computed: LPIPS: lpips_weights is not set; FVD: fvd_network is not set" in text


def test_rollouts_too_short_for_a_row_are_named_below_the_table() -> None:
    from types import SimpleNamespace
    from typing import Any

    from eval.world_model.table import scores_table

    none = ViewScores((), ())
    for views in ({"wrist": none}, {"wrist": none, "side": none}):
        result: Any = SimpleNamespace(protocol="tokens", suites=(), views=views, overall=none, notes=())
        table = scores_table(result)
        assert table.row_count == 0
        assert table.caption == "rollouts shorter than 10 frames have no row: set frames=10 or more"


class FailsOnLongVideos(nn.Module):
    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert x.shape[2] < 50, "out of memory"
        return x.mean(dim=[2, 3, 4])


def test_a_network_that_fails_later_costs_one_number(tmp_path: Path) -> None:
    path = tmp_path / "i3d.pt"
    torch.jit.script(FailsOnLongVideos()).save(str(path))
    truth = [frames(51, seed) for seed in (0, 1)]
    rollouts = [scored(each, each) for each in truth]
    short, long = horizon_scores(rollouts, MISSING, VideoFeatures(path))
    assert (short.fvd, long.fvd) == (pytest.approx(0, abs=1e-6), None)
    assert re.fullmatch("failed: .*out of memory.*", long.not_computed["fvd"])
    assert long.psnr == 60.0


def test_frames_smaller_than_a_window_are_refused() -> None:
    with pytest.raises(InputError, match="frames have 8 px; SSIM needs at least 11"):
        check_pixels(8)
    check_pixels(11)
    truth = np.zeros((2, 11, 11, 3), np.uint8)
    assert score(Videos.of_rollout(truth, truth), *codes(2))[0].ssim == 1.0


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        ([50, 49, 49], "148 frames of 3 episodes (49 to 50 each)"),
        ([50, 50], "100 frames of 2 episodes (50 each)"),
        ([1], "1 frame"),
    ],
)
def test_frames_are_counted_as_they_are(lengths: list[int], text: str) -> None:
    assert frames_text(lengths) == text


def test_scores_of_an_earlier_version_are_shown_without_a_baseline() -> None:
    content = {"psnr": 24.2, "ssim": 0.5, "lpips": None, "frames": [{}] * 8}
    assert scores_text(content) == "PSNR 24.2 dB, SSIM 0.500 over 8 frames, protocol tokens"
    assert scores_text({"psnr": float("nan")}) == "0 frames, protocol tokens"
    content |= {"no_change_psnr": 26.7, "rollouts": [{"frames": [{}] * 8}]}
    assert (
        scores_text(content) == "PSNR 24.2 dB (no change: 26.7 dB), SSIM 0.500 over 8 frames, protocol tokens"
    )
