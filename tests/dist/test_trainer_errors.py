"""Mistakes of a user before a training starts: one line each, and nothing written is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config import TrainingConfig
from tests.support import training_case as case
from tests.support.ranks import run_ranks


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return case.write_dataset(tmp_path_factory.mktemp("shards"))


def message(config: TrainingConfig, ranks: int = 1) -> str:
    """The InputError that every rank raises."""
    found = run_ranks(case.try_train, ranks, config)
    assert len(set(found)) == 1
    return found[0]


def test_another_run_folder_is_refused_on_every_rank(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url)
    config.trainer.stop_after = 2
    assert message(config) == ""
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    other = case.settings(tmp_path, url, (1, 2, 1))
    other.optim.lr = 0.5
    assert "other settings (optim.lr was 0.01, now 0.5); choose another run.name" in message(other, ranks=2)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == lines
    anew = case.settings(tmp_path, url)
    anew.checkpointing.resume = "none"
    assert "checkpointing.resume=none, but" in message(anew)
    missing = case.settings(tmp_path, url)
    missing.checkpointing.resume = str(tmp_path / "run" / "checkpoints" / "step_00000007")
    assert "step_00000007: no committed checkpoint" in message(missing)
    elsewhere = case.settings(tmp_path / "b", case.write_dataset(tmp_path / "data", seed=1))
    elsewhere.checkpointing.resume = str(tmp_path / "run" / "checkpoints" / "step_00000002")
    assert "was trained on the data set" in message(elsewhere)


def _small_vocabulary(config: TrainingConfig) -> None:
    config.model.vocabulary_size = 16_384


def _few_positions(config: TrainingConfig) -> None:
    config.model.max_positions = 30


def _no_data(config: TrainingConfig) -> None:
    config.data.url += "-gone"


def _wrong_world(config: TrainingConfig) -> None:
    config.parallel.data = 2


def _unwritable(config: TrainingConfig) -> None:
    config.run.dir = "/proc/nowhere"


def _negative_warmup(config: TrainingConfig) -> None:
    config.optim.warmup_steps = -1


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_small_vocabulary, "model.vocabulary_size=16384, but the tokenizer has ids up to 16895"),
        (_few_positions, "model.max_positions=30, but samples have up to"),
        (_no_data, "no index.json there; make the data set with `worldvla prepare`"),
        (_wrong_world, "1 processes run, but parallel.tensor=1 x parallel.data=2 needs 2"),
        (_unwritable, "/proc/nowhere/run: cannot write the run folder"),
        (_negative_warmup, "optim.warmup_steps=-1, expected 0 or more"),
    ],
)
def test_invalid_input_is_refused(
    url: str, tmp_path: Path, spoil: Callable[[TrainingConfig], None], expected: str
) -> None:
    config = case.settings(tmp_path, url)
    spoil(config)
    assert expected in message(config)


def test_attention_that_this_machine_lacks_leaves_no_folder(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url)
    config.model.attention = "flash2"
    assert "model.attention=flash2: needs a CUDA device" in message(config)
    assert not (tmp_path / "run").exists()


def test_tokenizers_that_cannot_be_written_are_an_error_on_every_rank(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, (1, 2, 1))
    (tmp_path / "run" / "tokenizers" / "image_tokenizer.safetensors").mkdir(parents=True)
    assert "run/tokenizers: cannot be written (Is a directory)" in message(config, ranks=2)


def test_the_image_tokenizer_must_be_the_data_sets(url: str, tmp_path: Path) -> None:
    from data.tokens.image import ImageTokenizer
    from data.tokens.image_model import ImageModel, ImageModelConfig

    other = tmp_path / "other.safetensors"
    ImageTokenizer(ImageModel(ImageModelConfig())).save(other)
    config = case.settings(tmp_path, url)
    config.data.image_tokenizer = str(other)
    assert "the data set was prepared with" in message(config)
