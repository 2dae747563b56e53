"""What an export says of its use, and tokenizers that are not those of the training."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.main import main
from data.config import DataConfig
from data.tokens.action import DEFAULT_RANGES
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.config import TrainingConfig
from pretrain.policy_settings import PolicySettings
from pretrain.settings import to_yaml
from pretrain.sources import libero_source
from tests.support import hugging_face
from tests.support.tokenizers import shipped_image_tokenizer, shipped_text_tokenizer

DATA = DataConfig(url="shards", cameras=["wrist"], history=1, chunk=7)


@pytest.fixture
def settings() -> PolicySettings:
    image, text = shipped_image_tokenizer(), shipped_text_tokenizer()
    return PolicySettings.of(DATA, 64, (libero_source(DATA),), image.sha256, text.sha256)


@pytest.fixture
def checkpoint(tmp_path: Path, settings: PolicySettings) -> Path:
    """A checkpoint in a run's folder, with the settings in its manifest."""
    folder = tmp_path / "run/checkpoints/step_00000007"
    hugging_face.save(tmp_path / "theirs")
    assert main(["convert", "import", f"source={tmp_path}/theirs", f"out={folder}"]) == 0
    run = tmp_path / "run"
    (run / "config.yaml").write_text(to_yaml(TrainingConfig(data=DATA)))
    shipped_image_tokenizer().save(_made(run / "tokenizers") / "image_tokenizer.safetensors")
    shipped_text_tokenizer().save(run / "tokenizers")
    (run / "action_ranges.json").write_text(json.dumps(asdict(DEFAULT_RANGES)))
    set_metadata(folder, policy=settings.to_json())
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def set_metadata(checkpoint: Path, **changed: Any) -> None:
    """Change the metadata; a key with None is removed."""
    manifest = Manifest.read(open_checkpoint(checkpoint))
    metadata = {**manifest.metadata, **changed}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    replace(manifest, metadata=metadata).write(checkpoint)


def export(checkpoint: Path, *words: str) -> int:
    return main(["convert", "export", f"checkpoint={checkpoint}", f"out={checkpoint}/../out", *words])


def exported(checkpoint: Path) -> Path:
    return checkpoint.parent / "out"


def test_an_export_says_what_it_is_used_with(
    checkpoint: Path, settings: PolicySettings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(checkpoint) == 0
    content = json.loads((exported(checkpoint) / "policy.json").read_text())
    assert content == settings.to_json()
    assert (content["cameras"], content["history"], content["chunk"]) == (["wrist"], 1, 7)
    said = " ".join(capsys.readouterr().out.split())
    assert "policy.json: camera wrist, history 1, chunk 7, image tokenizer" in said
    assert "note:" not in said
    names = {path.name for path in exported(checkpoint).iterdir()}
    assert {"config.json", "generation_config.json", "policy.json"} < names


@pytest.mark.parametrize("name", ["image_tokenizer.safetensors", "text_tokenizer.json"])
def test_the_tokenizers_of_another_training_are_refused(
    name: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint.parents[1] / "tokenizers" / name
    path.write_bytes(path.read_bytes() + b" ")
    assert export(checkpoint) == 2
    assert f"{path}: has checksum" in capsys.readouterr().err
    assert not exported(checkpoint).exists()


def test_the_encoder_of_another_image_tokenizer_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    content = bytearray((checkpoint.parents[1] / "tokenizers/image_tokenizer.safetensors").read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    assert export(checkpoint, f"image_tokenizer={other}") == 2
    assert f"image_tokenizer={other}: has checksum" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_is_described_by_its_runs_files(
    checkpoint: Path, settings: PolicySettings, capsys: pytest.CaptureFixture[str]
) -> None:
    set_metadata(checkpoint, policy=None)
    assert export(checkpoint) == 0
    assert json.loads((exported(checkpoint) / "policy.json").read_text()) == settings.to_json()
    assert "those of the run's folder are used unverified" in " ".join(capsys.readouterr().out.split())


def test_a_checkpoint_away_from_its_run_keeps_what_it_says(
    checkpoint: Path, settings: PolicySettings, tmp_path: Path
) -> None:
    away = tmp_path / "elsewhere/step_00000007"
    away.parent.mkdir()
    checkpoint.rename(away)
    assert export(away) == 0
    assert json.loads((exported(away) / "policy.json").read_text()) == settings.to_json()


def test_imported_weights_have_no_use_yet(tmp_path: Path) -> None:
    hugging_face.save(tmp_path / "theirs")
    assert main(["convert", "import", f"source={tmp_path}/theirs", f"out={tmp_path}/ours"]) == 0
    assert export(tmp_path / "ours") == 0
    assert not (exported(tmp_path / "ours") / "policy.json").exists()


def test_inspecting_a_checkpoint_shows_what_it_was_trained_with(
    checkpoint: Path, settings: PolicySettings, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["inspect", "checkpoint", f"path={checkpoint}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["policy"] == settings.to_json()
