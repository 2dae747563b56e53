"""What a checkpoint says of its training is read without trusting it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from data.errors import InputError
from pretrain.checkpoint.compatibility import check_network
from pretrain.checkpoint.manifest import Manifest, StoredTensor
from pretrain.checkpoint_metadata import settings_section
from pretrain.convert.exporting import stored_model
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.model.transformer import expected_shapes
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
    check_dataset(metadata, "c", "d", "fingerprint", "train", "local")


def test_a_difference_of_action_heads_is_one_sentence() -> None:
    without = ModelConfig(layers=1, hidden_size=32, ffn_size=32, heads=2, vocabulary_size=64)
    head = replace(without, action_head=ActionHeadConfig(time_horizon=5))
    longer = replace(without, action_head=ActionHeadConfig(time_horizon=10))
    for there, here, found in (
        (head, longer, r"model\.action_head\.time_horizon is 5 there, 10 here"),
        (head, without, r"it has an action head \(model\.action_head\.time_horizon=5\), this model has none"),
        (without, head, r"it has no action head .*, this model has one, .* checkpointing\.start_from adds"),
    ):
        tensors = {
            f"master/{name}": StoredTensor(tuple(shape)) for name, shape in expected_shapes(there).items()
        }
        manifest = Manifest(1, 1, {"config": {"model": asdict(there)}}, tensors, {})
        with pytest.raises(InputError, match=rf"^c: another network: {found}; give the model\.\* it was"):
            check_network("c", manifest, here)
        check_network("c", manifest, there)
