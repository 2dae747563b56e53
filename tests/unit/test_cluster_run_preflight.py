"""Settings of evaluations beside a training are checked before any process starts."""

from __future__ import annotations

import pytest

from cluster.config import RootConfig
from cluster.run.preflight import check_run
from data.errors import InputError
from pretrain.settings import compose


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.every=15", r"eval\.every=15 is not a multiple of checkpointing\.every=10"),
        ("eval.retries=-1", r"eval\.retries=-1: expected at least 0"),
        ("eval.episodes=51", r"eval\.episodes=51 from eval\.seed=0"),
    ],
)
def test_evaluation_settings_out_of_range_are_refused(override: str, message: str) -> None:
    given = ["run.name=a", "data.url=shards", "checkpointing.every=10", "eval.every=10", override]
    with pytest.raises(InputError, match=message):
        check_run(compose("train", RootConfig, "train", given))
