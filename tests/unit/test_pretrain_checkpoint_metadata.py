"""What a checkpoint says of its training is read without trusting it."""

from __future__ import annotations

from typing import Any

import pytest

from data.errors import InputError
from pretrain.checkpoint.compatibility import check_network
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint_metadata import settings_section
from pretrain.convert.exporting import stored_model
from pretrain.model.config import ModelConfig
from pretrain.run_folder import wandb_run_of
from pretrain.run_start import check_dataset


def test_a_section_of_the_settings() -> None:
    metadata = {"config": {"model": {"layers": 2}}}
    assert settings_section(metadata, "model") == {"layers": 2}
    assert settings_section(metadata, "run") == {}


@pytest.mark.parametrize(
    "metadata", [{}, {"config": "none"}, {"config": ["model"]}, {"config": {"model": 3}}]
)
def test_settings_of_another_form_are_none_for_everyone_who_reads_them(
    metadata: dict[str, Any], tmp_path: Any
) -> None:
    manifest = Manifest(1, 1, metadata, {}, {})
    assert settings_section(metadata, "model") == {}
    with pytest.raises(InputError, match=r"c: another network: .* is missing there"):
        check_network("c", manifest, ModelConfig())
    with pytest.raises(InputError, match="holds no settings of the model"):
        stored_model(tmp_path, manifest)
    assert wandb_run_of({**metadata, "wandb_run": "abcd1234"}, "run") is None
    check_dataset(metadata, "c", "d", "fingerprint", "train")
