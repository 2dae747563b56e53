"""What a checkpoint says of its use: written, read, and made of the settings of a training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from data.config import DataConfig
from data.errors import InputError
from data.json_record import JsonRecord
from data.storage.index import StateRanges
from pretrain.config import LossConfig, TrainingConfig, trained_decoders
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.policy_settings import PolicySettings
from pretrain.sources import libero_source

SOURCE = libero_source(DataConfig())
SETTINGS = PolicySettings.of(DataConfig(cameras=["wrist"]), 64, (SOURCE,), "1" * 64, "2" * 64)


@pytest.mark.parametrize(
    "changed",
    [
        {"cameras": ("agent", "wrist")},
        {"sources": (replace(SOURCE, state_ranges=StateRanges((0.0,) * 8, (1.0,) * 8)),)},
        {"predicted_frames": 2},
        {"decoders": ("discrete", "continuous")},
        {"decoders": ("continuous",)},
    ],
)
def test_settings_are_read_as_they_were_written(changed: dict[str, Any]) -> None:
    settings = replace(SETTINGS, **changed)
    assert settings != SETTINGS
    assert PolicySettings.of_record(JsonRecord(settings.to_json(), "")) == settings


def test_records_of_earlier_versions_are_of_discrete_decoders() -> None:
    earlier = SETTINGS.to_json()
    assert earlier.pop("decoders") == ["discrete"]
    assert PolicySettings.of_record(JsonRecord(earlier, "")).decoders == ("discrete",)


@pytest.mark.parametrize("decoders", [["sampled"], "discrete", [1], None])
def test_malformed_decoders_are_refused(decoders: object) -> None:
    record = JsonRecord(SETTINGS.to_json() | {"decoders": decoders}, "policy.json")
    with pytest.raises(InputError, match=r"^policy\.json: decoders is .*, expected (texts out of|a list)"):
        PolicySettings.of_record(record)


@pytest.mark.parametrize(
    ("head", "tokens", "expected"),
    [
        (None, True, ("discrete",)),
        (ActionHeadConfig(), True, ("discrete", "continuous")),
        (ActionHeadConfig(), False, ("continuous",)),
    ],
)
def test_a_training_says_how_its_policy_can_decide(
    head: ActionHeadConfig | None, tokens: bool, expected: tuple[str, ...]
) -> None:
    config = TrainingConfig(model=ModelConfig(action_head=head), loss=LossConfig(tokens_for_actions=tokens))
    assert trained_decoders(config) == expected
    config.loss.action_l1 = 0
    assert "continuous" not in trained_decoders(config), "the head has no loss"
    config.data.mixture.action = 0
    settings = replace(SETTINGS, decoders=trained_decoders(config))
    assert settings.decoders == ()
    assert PolicySettings.of_record(JsonRecord(settings.to_json(), "")) == settings
