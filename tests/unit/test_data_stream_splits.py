"""Which episodes a training reads: those of `train`, or all."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.inspect.config import InspectPlanConfig
from cluster.inspect.plan import plan_step
from data.config import DataConfig, TrainingSplit
from data.stream.datasets import open_datasets
from data.stream.loader import TokenStream
from data.tokens.action import encode
from pretrain.config import TrainerConfig
from tests.support.shards_case import episode, write_dataset

TRAINER = TrainerConfig(global_batch=32, sequence_length=512)  # an epoch in one step
HELD_OUT, STEPS, CHUNK = 0, 4, 2  # the episode of `val_ind`


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("shards")).url


def trained_on(url: str, split: TrainingSplit, number: int) -> bool:
    """Whether the first step holds an action of an episode."""
    bins = encode(episode(number, STEPS + number).actions)[1].tolist()
    block = np.array([10_004, *bins, 15_004])
    with TokenStream(DataConfig(url, chunk=CHUNK, split=split), TRAINER, seed=0) as stream:
        assert stream.split == split
        (batch,) = stream.micro_batches(0, 0, 1)
    windows = np.lib.stride_tricks.sliding_window_view(batch.tokens, len(block), axis=1)
    return bool((windows == block).all(axis=2).any())


@pytest.mark.parametrize("number", range(3))
def test_held_out_episodes_are_trained_on_with_split_all_only(url: str, number: int) -> None:
    assert trained_on(url, "all", number)
    assert trained_on(url, "train", number) == (number != HELD_OUT)


def test_a_split_that_is_asked_for_is_read_whatever_is_trained_on(url: str) -> None:
    config = DataConfig(url, chunk=CHUNK, split="all")
    keys = {
        split: [entry.key for entry in open_datasets(config, split)[0].entries]
        for split in (None, "train", "val_ind")
    }
    assert keys == {
        None: ["lift/demo_0", "lift/demo_1", "lift/demo_2"],
        "train": ["lift/demo_1", "lift/demo_2"],
        "val_ind": ["lift/demo_0"],
    }
    with TokenStream(config, TRAINER, seed=0, split="val_ind") as stream:
        assert (stream.split, set(stream.plan.step(0).episodes.tolist())) == ("val_ind", {0})


def test_the_inspected_plan_is_that_of_the_split(url: str) -> None:
    def windows(split: TrainingSplit) -> int:
        config = InspectPlanConfig(url, split=split, global_batch=32, sequence_length=512, chunk=CHUNK)
        return len({number for ids in plan_step(config).window_ids for number in ids})

    held_out = STEPS - CHUNK + 1 + STEPS - 1  # its action and its world windows
    assert windows("all") - windows("train") == held_out
