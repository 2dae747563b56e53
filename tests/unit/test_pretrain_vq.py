"""Training the image tokenizer: quality, repeatability, the report, refused input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.config import CameraNames
from data.contracts import Demonstration
from data.errors import InputError
from data.tokens.image import ImageTokenizer
from data.tokens.image_model import Codebook
from pretrain.config import VqConfig
from pretrain.vq import train as image_tokenizer
from pretrain.vq.codebook import MovingCodebook
from pretrain.vq.train import read_frames, train_image_tokenizer
from tests.support.lerobot_layout import CAMERAS, recorded, write_lerobot

TINY = VqConfig(
    source="demos",
    steps=10,
    batch_size=8,
    frames=6,
    precision="fp32",
    pixels=16,
    codebook_size=16,
    embedding_size=4,
    latent_channels=8,
    base_channels=8,
    channel_multiplier=[1, 2],
    norm_groups=4,
)


def moving_square(seed: int, length: int = 8, side: int = 16) -> Demonstration:
    """A red square that moves over a grey table."""
    rng = np.random.default_rng(seed)
    frames = np.full((length, side, side, 3), 180, np.uint8)
    for t, (y, x) in enumerate(rng.integers(0, side - 5, (length, 2))):
        frames[t, y : y + 5, x : x + 5] = (200, 30, 30)
    return Demonstration(
        key=f"task/demo_{seed}",
        suite="suite",
        task="task",
        instruction="push",
        frames={"agent": frames, "wrist": frames[:, ::-1]},
        actions=np.zeros((length, 7)),
        states=np.zeros((length, 8), np.float32),
    )


@pytest.fixture
def demonstrations(monkeypatch: pytest.MonkeyPatch) -> list[Demonstration]:
    actual = [moving_square(seed) for seed in range(6)]

    def read(config: VqConfig) -> Iterator[Demonstration]:
        assert config.source == "demos"
        yield from actual

    monkeypatch.setattr(image_tokenizer, "read_demonstrations", read)
    return actual


@pytest.mark.usefixtures("demonstrations")
def test_training_reconstructs_held_out_frames(tmp_path: Path) -> None:
    out = tmp_path / "folder/vq.safetensors"
    untrained = train_image_tokenizer(replace(TINY, steps=1, out=str(out)))
    reported: list[tuple[int, int]] = []
    report = train_image_tokenizer(
        replace(TINY, steps=70, out=str(out)), lambda done, total: reported.append((done, total))
    )
    assert reported == [(i, 70) for i in range(1, 71)]
    assert set(report.psnr) == {"suite/agent", "suite/wrist"}
    for camera, psnr in report.psnr.items():
        assert psnr > untrained.psnr[camera] + 4
    assert report.codes_used > 4
    assert (report.train_frames, report.held_out_frames) == (60, 12)
    assert ImageTokenizer.load(report.path).sha256 == report.sha256


@pytest.mark.usefixtures("demonstrations")
def test_same_seed_same_weights(tmp_path: Path) -> None:
    first, second, other = (
        train_image_tokenizer(replace(TINY, steps=12, seed=seed, out=str(tmp_path / f"{name}.safetensors")))
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sha256 != other.sha256


def test_frames_are_held_out_by_whole_demonstrations(demonstrations: list[Demonstration]) -> None:
    agent, wrist = image_tokenizer.read_frames(TINY)
    assert (agent.group, wrist.group) == ("suite/agent", "suite/wrist")
    assert (len(agent.train), len(agent.held_out)) == (30, 6)
    np.testing.assert_array_equal(agent.held_out, wrist.held_out[:, ::-1])  # the same one for each camera
    whole = [{frame.tobytes() for frame in d.frames["agent"]} for d in demonstrations]
    assert any({frame.tobytes() for frame in agent.held_out} <= frames for frames in whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_groups": 3}, "norm_groups=3"),
        ({"pixels": 15}, "pixels=15"),
        ({"steps": 0}, "steps=0"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"codebook_size": 8193}, "codebook_size=8193: expected at most 8192"),
    ],
)
@pytest.mark.usefixtures("demonstrations")
def test_invalid_settings_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_image_tokenizer(replace(TINY, out=str(tmp_path / "x.safetensors"), **change))


def test_training_frames_remain_at_any_held_out_share(demonstrations: list[Demonstration]) -> None:
    del demonstrations[2:]
    for frames in image_tokenizer.read_frames(replace(TINY, held_out=0.9)):
        assert (len(frames.train), len(frames.held_out)) == (6, 6)


def test_one_demonstration_is_too_few(demonstrations: list[Demonstration], tmp_path: Path) -> None:
    del demonstrations[1:]
    with pytest.raises(InputError, match="task task has 1 demonstration, expected at least 2"):
        train_image_tokenizer(replace(TINY, out=str(tmp_path / "x.safetensors")))


@pytest.mark.usefixtures("demonstrations")
def test_unwritable_file_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    steps: list[int] = []
    with pytest.raises(InputError, match="cannot write"):
        train_image_tokenizer(
            replace(TINY, out=str(tmp_path / "file/x.safetensors")), lambda done, total: steps.append(done)
        )
    assert steps == []


@pytest.mark.usefixtures("demonstrations")
def test_a_tokenizer_replaces_no_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"notes\.txt: expected the name of a file that ends in \.safetensors"
    ):
        train_image_tokenizer(replace(TINY, out=str(tmp_path / "notes.txt")))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_codebook_starts_at_the_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    latents = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    book = Codebook(8, 2)
    MovingCodebook(book, seed=0).start(latents)
    nearest = torch.cdist(centres, book.embedding.weight).min(1).values
    assert nearest.max() < 0.3


def test_codebook_tracks_latents_and_restarts_unused_entries() -> None:
    book = Codebook(3, 2)
    book.embedding.weight.data = torch.tensor([[0.0, 0.0], [100.0, 100.0], [200.0, 0.0]])
    moving = MovingCodebook(book, seed=0)
    latents = torch.tensor([1.0, 1.0]).expand(4, 2, 2, 2)
    for _ in range(900):
        moving.quantise(latents, update=True)
    # The used entry has converged; the two unused ones restarted at latents.
    assert torch.allclose(book.embedding.weight, torch.ones(3, 2), atol=0.05)


def test_quantising_has_straight_through_gradient_and_commitment_loss() -> None:
    book = Codebook(2, 1)
    book.embedding.weight.data = torch.tensor([[0.0], [4.0]])
    moving = MovingCodebook(book, seed=0)
    latents = torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1).requires_grad_()
    entries, commitment = moving.quantise(latents, update=False)
    assert entries.flatten().tolist() == [0.0, 4.0]
    (entries * torch.tensor([2.0, 3.0]).reshape(1, 1, 2, 1)).sum().backward(retain_graph=True)
    assert latents.grad is not None
    assert latents.grad.flatten().tolist() == [2.0, 3.0]
    latents.grad.zero_()
    commitment.backward()
    assert latents.grad.flatten().tolist() == [1.0, -1.0]  # 2 (z - e) / 2
    assert not book.embedding.weight.requires_grad


def test_frames_come_from_any_format_and_are_made_square(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", "v2.1", [recorded(8, i, pixels=32) for i in range(3)], "image")
    config = replace(TINY, source=str(folder), frames=4, cameras=CameraNames(agent=CAMERAS[1]))
    (actual,) = read_frames(config)
    assert actual.group == "set/agent"
    assert (len(actual.train), len(actual.held_out)) == (8, 4)
    assert actual.train.shape[1:] == (16, 16, 3)
