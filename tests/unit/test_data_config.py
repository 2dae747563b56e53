"""Settings of `prepare` and `convert samples` with a few allowed values: any other one is refused."""

from __future__ import annotations

from typing import get_args

import pytest

from cluster.config import PrepareCommandConfig
from data.config import ConvertSamplesConfig, NamedRanges, Ranges
from data.errors import InputError
from data.tokens.action import NAMED_RANGES
from pretrain.settings import compose

CHOICES = {
    "format": "libero, lerobot, rlds, webdataset, or null",
    "fit": "refuse, crop, pad, stretch",
    "compression": "none, zstd",
    "ranges": "worldvla, rynnvla, extremes, quantiles, or null",
}


@pytest.mark.parametrize("name", CHOICES)
def test_prepare_refuses_other_values_than_the_choices(name: str) -> None:
    given = ["source=x", "out=y"]
    with pytest.raises(InputError, match=f"^prepare: {name}=other, expected one of {CHOICES[name]};"):
        compose("prepare", PrepareCommandConfig, None, [*given, f"{name}=other"])
    for value in CHOICES[name].replace("or ", "").split(", "):
        config = compose("prepare", PrepareCommandConfig, None, [*given, f"{name}={value}"])
        assert getattr(config, name) == (None if value == "null" else value)


@pytest.mark.parametrize(
    ("setting", "choices"), [("compression=gzip", "none, zstd"), ("ranges=extremes", "worldvla, rynnvla")]
)
def test_convert_samples_refuses_other_values_than_the_choices(setting: str, choices: str) -> None:
    given = ["source=x", "out=y", "suite=z"]
    with pytest.raises(InputError, match=f"^samples: {setting}, expected one of {choices};"):
        compose("samples", ConvertSamplesConfig, None, [*given, setting])


def test_every_named_range_is_a_choice() -> None:
    assert set(NAMED_RANGES) == set(get_args(NamedRanges)) < set(get_args(Ranges))
