from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.config import RootConfig
from cluster.overrides import format_value, key_of, model_overrides, override
from pretrain.settings import compose, named_models


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        ([1, 2], "[1,2]"),
        ((), "[]"),
        (1e-5, "1e-05"),
        ("a", "a"),
    ],
)
def test_values_have_the_syntax_of_the_command_line(value: object, text: str) -> None:
    assert format_value(value) == text


def test_an_override_has_key_and_value() -> None:
    assert override("model.layers", 4) == "model.layers=4"
    assert key_of("run.name=a=b") == "run.name"


def test_a_named_model_is_its_name_alone() -> None:
    for name, model in named_models().items():
        assert model_overrides(model) == [f"model={name}"]


def test_another_model_is_the_nearest_name_and_the_differences() -> None:
    model = replace(named_models()["tiny"], layers=5, swin_norm=True)
    words = model_overrides(model)
    assert words == ["model=tiny", "model.layers=5", "model.swin_norm=true"]
    composed = compose("t", RootConfig, "train", ["run.name=r", "data.url=d", *words]).model
    assert (composed.layers, composed.swin_norm, composed.hidden_size) == (5, True, model.hidden_size)
