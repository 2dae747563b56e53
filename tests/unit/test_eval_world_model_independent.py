"""Every metric once against an implementation of its own, and the numbers that docs/evaluation.md gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eval.world_model.fvd import frechet_distance
from eval.world_model.lpips import VGG16, Lpips
from eval.world_model.protocol import PUBLISHED
from eval.world_model.scores import FrameScore, Videos, score
from eval.world_model.ssim import ssim
from tests.support import independent_metrics as independent

_DOCUMENTATION = Path(__file__).parents[2] / "docs/evaluation.md"


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    weights = independent.alexnet_weights()
    torch.save({name: torch.tensor(values, dtype=torch.float32) for name, values in weights.items()}, path)
    return Lpips(path)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    weights = independent.network_weights(independent.VGG16)
    torch.save({name: torch.tensor(values, dtype=torch.float32) for name, values in weights.items()}, path)
    return Lpips(path, backbone=VGG16)


@pytest.fixture(scope="module")
def vgg_distances(vgg: Lpips) -> dict[str, list[float]]:
    """LPIPS with VGG-16 of all frames of the scene, the given one first, independently computed."""
    linear = [layer.double().numpy() for layer in vgg.linear]
    weights = independent.network_weights(independent.VGG16)
    truth, predicted = independent.scene()
    unchanged = [truth[0]] * len(truth)
    return {
        prefix: [
            independent.lpips(*pair, weights, linear, independent.VGG16)
            for pair in zip(truth, frames, strict=True)
        ]
        for prefix, frames in (("", predicted), ("no_change_", unchanged))
    }


@pytest.fixture(scope="module")
def scores(lpips: Lpips) -> tuple[FrameScore, ...]:
    truth, predicted = independent.scene()
    codes = np.zeros((len(truth), 8, 8), np.int64)
    return score(Videos.of_rollout(truth, predicted), codes, codes, lpips)


def frame_pairs(baseline: bool) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    truth, predicted = independent.scene()
    return [(truth[t], truth[0] if baseline else predicted[t]) for t in range(1, len(truth))]


@pytest.mark.parametrize("prefix", ["", "no_change_"])
@pytest.mark.parametrize(
    ("name", "definition", "error"),
    [
        ("psnr", independent.psnr, 1e-5),  # torchmetrics takes the range of values as float32
        ("ssim", independent.ssim, 1e-9),
        ("ssim", independent.ssim_filtered, 1e-9),
    ],
    ids=["psnr", "ssim", "ssim as scikit-image filters"],
)
def test_scores_of_frames_are_those_of_an_independent_implementation(
    scores: tuple[FrameScore, ...], prefix: str, name: str, definition: Callable[..., float], error: float
) -> None:
    expected = [definition(*pair) for pair in frame_pairs(baseline=bool(prefix))]
    assert [getattr(each, f"{prefix}{name}") for each in scores] == pytest.approx(expected, abs=error)


def test_ssim_of_frames_that_are_not_square_is_that_of_an_independent_implementation() -> None:
    truth, predicted = (frames[5][:40, 7:30] for frames in independent.scene())
    true, other = (torch.tensor(frame).permute(2, 0, 1)[None].double() for frame in (truth, predicted))
    assert ssim(true, other).tolist() == pytest.approx([independent.ssim(truth, predicted)], abs=1e-9)
    assert ssim(true, true).tolist() == [1.0]


@pytest.mark.parametrize("prefix", ["", "no_change_"])
def test_lpips_is_that_of_an_independent_implementation(
    scores: tuple[FrameScore, ...], lpips: Lpips, prefix: str
) -> None:
    linear = [layer.double().numpy() for layer in lpips.linear]
    pairs = frame_pairs(baseline=bool(prefix))
    expected = [independent.lpips(*pair, independent.alexnet_weights(), linear) for pair in pairs]
    assert min(expected) > 1e-3
    assert [getattr(each, f"{prefix}lpips") for each in scores] == pytest.approx(expected, rel=1e-4)


def test_layers_of_lpips_are_those_of_an_independent_implementation(lpips: Lpips) -> None:
    frame = independent.scene()[1][-1]
    layers = independent.lpips_layers(frame, independent.alexnet_weights())
    for ours, expected in zip(lpips.activations(torch.as_tensor(frame)[None]), layers, strict=True):
        np.testing.assert_allclose(ours[0].numpy(), expected, atol=1e-4)


def test_frechet_distance_is_that_of_an_independent_implementation() -> None:
    one, other = independent.features(12, 5, 0.0), independent.features(9, 5, 1.0)
    expected = independent.frechet_distance(one, other)
    assert frechet_distance(torch.as_tensor(one), torch.as_tensor(other)) == pytest.approx(expected, rel=1e-9)


def test_published_scores_are_those_of_an_independent_implementation(
    vgg: Lpips, vgg_distances: dict[str, list[float]]
) -> None:
    truth, predicted = independent.scene()
    codes = np.zeros((len(truth), 8, 8), np.int64)
    found = score(Videos.of_rollout(truth, predicted, PUBLISHED.first), codes, codes, vgg, PUBLISHED)
    assert len(found) == len(truth)
    for prefix, frames in (("", predicted), ("no_change_", [truth[0]] * len(truth))):
        pairs = list(zip(truth, frames, strict=True))
        for name, definition in (("psnr", independent.psnr_published), ("ssim", independent.ssim)):
            expected = [definition(*pair) for pair in pairs]
            assert [getattr(each, f"{prefix}{name}") for each in found] == pytest.approx(expected, abs=1e-9)
        assert [getattr(each, f"{prefix}lpips") for each in found] == pytest.approx(
            vgg_distances[prefix], rel=1e-4, abs=1e-7
        )
    assert found[0].psnr == 80.0  # of the given frame
    assert min(vgg_distances[""][1:]) > 1e-3


def test_layers_of_vgg_are_those_of_an_independent_implementation(vgg: Lpips) -> None:
    frame = independent.scene()[1][-1]
    layers = independent.lpips_layers(
        frame, independent.network_weights(independent.VGG16), independent.VGG16
    )
    assert [len(layer) for layer in layers] == [64, 128, 256, 512, 512]
    for ours, expected in zip(vgg.activations(torch.as_tensor(frame)[None]), layers, strict=True):
        np.testing.assert_allclose(ours[0].numpy(), expected, atol=1e-4 * float(expected.max()))


def test_frechet_distance_over_n_is_that_of_an_independent_implementation() -> None:
    one, other = (torch.as_tensor(values) for values in _feature_sets())
    expected = independent.frechet_distance(*_feature_sets(), freedom=0)
    assert frechet_distance(one, other, PUBLISHED.freedom) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(one, other) != pytest.approx(expected, rel=1e-3)


def test_windows_at_the_mirrored_border_do_not_count(scores: tuple[FrameScore, ...]) -> None:
    """torchmetrics averages over them, too: in frames with a still border that is another, higher number."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    truth, predicted = (
        torch.as_tensor(frames[1:]).permute(0, 3, 1, 2).double() for frames in independent.scene()
    )
    mirrored: Any = structural_similarity_index_measure(predicted, truth, data_range=255.0)
    assert float(mirrored) > np.mean([each.ssim for each in scores]) + 0.02


def test_documentation_has_the_independent_numbers(
    lpips: Lpips, vgg_distances: dict[str, list[float]]
) -> None:
    linear = [layer.double().numpy() for layer in lpips.linear]
    weights = independent.alexnet_weights()
    expected = {"FVD": independent.frechet_distance(*_feature_sets())}
    for baseline, suffix in ((False, ""), (True, ", no change")):
        pairs = frame_pairs(baseline)
        expected |= {
            f"PSNR{suffix}": float(np.mean([independent.psnr(*pair) for pair in pairs])),
            f"SSIM{suffix}": float(np.mean([independent.ssim(*pair) for pair in pairs])),
            f"LPIPS{suffix}": float(np.mean([independent.lpips(*pair, weights, linear) for pair in pairs])),
        }
    truth, predicted = independent.scene()
    expected |= {
        "published FVD": independent.frechet_distance(*_feature_sets(), freedom=0),
        "published PSNR": float(
            np.mean([independent.psnr_published(*p) for p in zip(truth, predicted, strict=True)])
        ),
        "published LPIPS": float(np.mean(vgg_distances[""])),
    }
    rows = re.findall(
        r"^\| ((?:published )?\w+(?:, no change)?)[^|]*\| ([\d.]+)(?: dB)? \|",
        _DOCUMENTATION.read_text(),
        re.M,
    )
    documented = {name: float(value) for name, value in rows if name in expected}
    assert documented == {name: pytest.approx(value, abs=5.1e-5) for name, value in expected.items()}


def _feature_sets() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return independent.features(12, 5, 0.0), independent.features(9, 5, 1.0)
