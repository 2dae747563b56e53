"""Which order a split gets, what is told of it, and batches of the local order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from cluster.inspect.config import InspectPlanConfig
from cluster.inspect.plan import plan_step
from data.config import DataConfig, MixtureConfig
from data.contracts import PackedBatch
from data.errors import InputError
from data.stream import order_choice
from data.stream.episodes.time_steps import TimeSteps
from data.stream.loader import TokenStream
from data.stream.order.plan import MAX_STEP
from data.stream.order_choice import OrderReport, report_order
from data.stream.setup import make_plan, open_setup
from pretrain.config import TrainerConfig
from tests.support.shards_case import write_dataset

TRAINER = TrainerConfig(global_batch=4, sequence_length=512)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("shards"), 12).url


def test_auto_is_full_up_to_a_size_that_does_not_depend_on_the_memory(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(url, chunk=2)
    setup = open_setup(config, TRAINER, 0)
    steps = int(setup.datasets[0].steps.sum())
    megabytes = steps * TimeSteps.empty(1, setup.forms[0]).nbytes / 2**20
    assert setup.plan.order == "full"
    monkeypatch.setattr(order_choice, "FULL_ORDER_MEGABYTES", megabytes)
    for memory in (1, 512):
        assert make_plan(replace(config, memory_megabytes=memory), TRAINER, 0).order == "full"
        assert make_plan(replace(config, memory_megabytes=memory, split="all"), TRAINER, 0).order == "local"
    assert make_plan(config, TRAINER, 0, "val_ind").order == "full"
    assert make_plan(replace(config, split="all", shuffle="full"), TRAINER, 0).order == "full"
    assert make_plan(replace(config, shuffle="local"), TRAINER, 0).order == "local"


@pytest.mark.parametrize("order", ["full", "local"])
def test_a_step_beyond_the_last_one_is_refused(url: str, order: Literal["full", "local"]) -> None:
    plan = make_plan(DataConfig(url, chunk=2, shuffle=order), TRAINER, 0)
    assert int(plan.layout.counts.max()) * MAX_STEP < 2**62
    assert len(plan.step(MAX_STEP)) == len(plan.step(0))
    for step in (-1, MAX_STEP + 1, 4 * 10**18, 10**20):
        with pytest.raises(InputError, match=f"step is {step}, expected 0 to {MAX_STEP}"):
            plan.step(step)


def test_variants_of_frames_count(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    config = DataConfig(url, chunk=2)
    setup = open_setup(config, TRAINER, 0)
    one, three = (TimeSteps.empty(1, setup.forms[0], variants).nbytes for variants in (0, 2))
    assert 2 * one < three
    sizes = order_choice._sizes(replace(config, variants=2), setup.datasets, setup.forms)
    assert sizes == [int(setup.datasets[0].steps.sum()) * three]


def test_the_full_order_has_no_blocks_and_the_local_one_has_a_block_list_for_each_data_set(url: str) -> None:
    full = make_plan(DataConfig(url, chunk=2, shuffle="full"), TRAINER, 0)
    local = make_plan(DataConfig(url, chunk=2, shuffle="local"), TRAINER, 0)
    assert full.blocks == (None,)
    (blocks,) = local.blocks
    assert blocks is not None
    episodes = [blocks.of(episode) for episode in range(local.datasets[0].tables[0].episodes)]
    assert all(episode in block for episode, block in enumerate(episodes))


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_of_batches_holds_the_same_samples_in_either_order(url: str, ranks: int) -> None:
    """As many steps as windows: each occurs as often as the step has slots."""
    trainer, seen = replace(TRAINER, sequence_length=400), list[dict[bytes, float]]()
    for order in ("full", "local"):
        config, samples = DataConfig(url, chunk=2, shuffle=order, shuffle_episodes=2), Counter[bytes]()
        with TokenStream(config, trainer, seed=0) as stream:
            windows = [table.count for table in stream.plan.datasets[0].tables]
            assert windows[0] == windows[1]
            assert stream.plan.order == order
            for step in range(windows[0]):
                for rank in range(ranks):
                    for batch in stream.micro_batches(step, rank, ranks):
                        samples.update(samples_of(batch))
            slots = stream.plan.layout.counts[0].tolist()
        assert slots[0] == slots[1]
        seen.append({sample: count / slots[0] for sample, count in samples.items()})
        assert len(samples) == sum(windows)
    assert seen[0] == seen[1]


def samples_of(batch: PackedBatch) -> Iterator[bytes]:
    for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
        for number in range(1, int(segments.max()) + 1):
            yield tokens[segments == number].tobytes()


def test_the_report_of_an_order_tells_what_a_rank_needs(url: str) -> None:
    config = DataConfig(url, chunk=2, shuffle="local", shuffle_episodes=2)
    setup = open_setup(config, replace(TRAINER, sequence_length=400), 0)
    report = report_order(config, setup.plan, setup.datasets, setup.forms, 2)
    slots, episodes = setup.plan.layout.counts[0], len(setup.datasets[0].entries)
    each = [min(2, episodes / slot) for slot in slots]
    mean = report.megabytes / episodes
    assert report.open_megabytes == pytest.approx(
        min(float(slots @ np.array(each)) * mean / 2, report.megabytes)
    )
    assert (report.order, report.episodes) == ("local", max(each))
    assert report.warning is None
    assert "local (data.shuffle=local" in str(report)
    full = replace(config, shuffle="full")
    setup = open_setup(full, TRAINER, 0)
    assert "full (data.shuffle=full" in str(report_order(full, setup.plan, setup.datasets, setup.forms, 1))


def test_a_rank_never_needs_more_than_all_episodes(url: str) -> None:
    config = DataConfig(url, chunk=2, shuffle="local")
    setup = open_setup(config, replace(TRAINER, sequence_length=400), 0)
    report = report_order(config, setup.plan, setup.datasets, setup.forms, 1)
    assert report.open_megabytes == pytest.approx(report.megabytes), "not twice: both kinds draw from these"
    assert replace(report, memory_megabytes=int(report.megabytes) + 1).warning is None


def test_a_place_that_draws_from_a_part_of_an_episode_is_not_said_to_draw_from_none() -> None:
    report = OrderReport("local", "local", 1.0, 0.3, 0.4, 1.0, 512)
    assert "draws from 1 of its 1 episodes at a time" in str(report)


def test_too_little_memory_is_warned_of_with_the_numbers_and_what_to_do() -> None:
    report = OrderReport("local", "auto", 90_000.0, 32.0, 500.0, 812.4, 512)
    assert str(report) == (
        "order of the windows: local (data.shuffle=auto, 90,000.0 MB of tokenised time steps); a place of a "
        "sequence draws from 32 of its 500 episodes at a time, the places of a rank from 812.4 MB"
    )
    assert report.warning is not None
    assert "draw from 812.4 MB of episodes at a time, but data.memory_megabytes=512" in report.warning
    assert (
        "set data.memory_megabytes=813, or begin a run with smaller data.shuffle_episodes" in report.warning
    )
    assert replace(report, memory_megabytes=813).warning is None
    assert replace(report, order="full").warning is None


def test_the_inspected_plan_tells_the_order(url: str) -> None:
    config = InspectPlanConfig(url, chunk=2, sequence_length=512)
    assert any("full (data.shuffle=auto" in line for line in plan_step(config).lines())
    local = replace(config, shuffle="local", shuffle_episodes=1)
    assert any("draws from 1 of its" in line for line in plan_step(local).lines())
    assert plan_step(local).window_ids != plan_step(config).window_ids


def test_the_inspected_plan_is_that_of_the_settings(url: str) -> None:
    config = InspectPlanConfig(url, chunk=2, sequence_length=512, mixture=MixtureConfig(1.0, 0.0))
    assert not plan_step(config).plan.layout.counts[:, 1].any(), "no world samples"
    small = replace(config, shuffle="local", shuffle_episodes=1, memory_megabytes=1)
    assert plan_step(small).order.memory_megabytes == 1
    with pytest.raises(InputError, match=r"data\.variants=3"):
        plan_step(replace(config, variants=3))
    with pytest.raises(InputError, match="camera 'ceiling'"):
        plan_step(replace(config, cameras=["ceiling"]))


def test_a_place_draws_from_at_least_one_episode(url: str) -> None:
    with pytest.raises(InputError, match=r"data\.shuffle_episodes is 0, expected at least 1"):
        make_plan(DataConfig(url, shuffle="local", shuffle_episodes=0), TRAINER, 0)
