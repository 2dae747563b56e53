"""Sections of the settings that may be null, and groups that a command does not have."""

from __future__ import annotations

import pytest

from cluster.config import RootConfig
from data.errors import InputError
from eval.config import ImagineConfig
from pretrain.settings import compose


@pytest.mark.parametrize(
    ("experiment", "override", "expected"),
    [
        ("demo", "trainer.seed=0", None),
        ("demo", "model.action_head.time_horizon=7", (7, 0.1)),
        ("demo", "model.action_head={time_horizon: 7, dropout: 0.3}", (7, 0.3)),
        ("demo_continuous", "trainer.seed=0", (5, 0.1)),
        ("demo_continuous", "model.action_head.dropout=0.2", (5, 0.2)),
        ("demo_continuous", "model.action_head=null", None),
    ],
)
def test_a_section_that_may_be_null_is_set_and_left_out(
    experiment: str, override: str, expected: tuple[int, float] | None
) -> None:
    """OmegaConf itself cannot merge a value of the command line into null."""
    overrides = [f"experiment={experiment}", "data.url=x", override]
    head = compose("train", RootConfig, "train", overrides).model.action_head
    assert (None if head is None else (head.time_horizon, head.dropout)) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.action_head.horizon=7"], r"unknown setting 'model.action_head.horizon'; .*time_horizon"),
        (["model.action_head={horizon: 7}"], r"unknown setting 'model.action_head.horizon'; .*time_horizon"),
        (
            ["model.action_head=5"],
            "model.action_head is a section .* or null; .* model.action_head.time_",
        ),
        (["model.action_head.time_horizon=x"], "model.action_head.time_horizon: Value 'x'"),
        (
            ["model.action_head.dropout=0.2", "model.action_head=null"],
            "model.action_head=null, and model.action_head.dropout=0.2 sets a part of it; leave one out",
        ),
    ],
)
def test_what_is_wrong_in_such_a_section_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        compose("train", RootConfig, "train", ["experiment=demo", "data.url=x", *overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=worldvla", "imagine: data is a section of settings; set its parts: data.url"),
        ("model=tiny", "imagine: unknown setting 'model'$"),
        ("cluster=laptop", "imagine: unknown setting 'cluster'"),
    ],
)
def test_groups_of_files_that_a_command_does_not_have_are_unknown(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose("imagine", ImagineConfig, None, ["checkpoint=x", override])
