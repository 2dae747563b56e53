"""The experiments of RynnVLA-002, in small, train on demonstrations in LIBERO's layout."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from data.config import PrepareConfig
from data.prepare.preparer import Preparer, prepare
from data.storage.episode_reader import read_episode
from data.tokens.action import NAMED_RANGES
from data.tokens.image import ImageTokenizer
from data.tokens.state import STATE_MAX, STATE_MIN
from pretrain.config import TrainingConfig
from pretrain.main import TorchrunConfig
from pretrain.run_folder import RunFolder
from pretrain.settings import compose
from tests.support import training_case as case
from tests.support.libero_layout import demonstration, write_file
from tests.support.ranks import run_ranks

POLICIES = [f"rynnvla_libero_{suite}_256" for suite in ("spatial", "object", "goal", "10")]
WORLD_MODEL = "rynnvla_world_512"
SMALL = (
    *("data.text_tokenizer=null", "data.image_tokenizer=null", "checkpointing.start_from=null"),
    *("model=tiny", "model.hidden_size=32", "model.ffn_size=48", "model.layers=1", "model.max_positions=512"),
    *("trainer.steps=2", "trainer.global_batch=1", "trainer.sequence_length=768", "trainer.precision=fp32"),
    *("validation.every=0", "telemetry.wandb=disabled", "parallel=single"),
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two demonstrations as `worldvla prepare source=... ranges=rynnvla` makes shards of them."""
    folder = tmp_path_factory.mktemp("rynnvla")
    demos = [demonstration(steps=12, seed=seed) for seed in range(2)]
    random, low, high = np.random.default_rng(0), np.array(STATE_MIN), np.array(STATE_MAX)
    for demo in demos:
        states = random.uniform(low, high, (12, 8))
        demo["obs/ee_states"], demo["obs/gripper_states"] = states[:, :6], states[:, 6:]
    write_file(folder / "demos" / "lift_demo.hdf5", demos)
    config = PrepareConfig(source=str(folder / "demos"), out=str(folder / "shards"), ranges="rynnvla")
    index = prepare(Preparer(config, ImageTokenizer.load()))
    assert index.cameras == ("agent", "wrist")
    assert index.action_ranges == NAMED_RANGES["rynnvla"]
    episode = read_episode(index, index.episodes[0])
    expected = np.hstack([demos[0]["obs/ee_states"], demos[0]["obs/gripper_states"]])
    assert np.array_equal(episode.states, expected.astype(np.float32))
    return config.out


def test_each_takes_steps(url: str, tmp_path: Path) -> None:
    configs = [
        compose(
            "train",
            TorchrunConfig,
            "train",
            [f"experiment={name}", *SMALL, f"data.url={url}", f"run.dir={tmp_path}"],
        )
        for name in (*POLICIES, WORLD_MODEL)
    ]
    assert run_ranks(_train_all, 1, configs) == [[""] * len(configs)]
    for config in configs:
        lines = case.measured(RunFolder.of(config.run))
        assert [line["step"] for line in lines] == [1, 2]
        assert all(math.isfinite(line["loss"]) for line in lines), config.run.name
        has_head = config.run.name in POLICIES
        assert all(("action_head_l1" in line) == has_head for line in lines), config.run.name


def _train_all(configs: list[TrainingConfig]) -> list[str]:
    return [case.try_train(config) for config in configs]
