"""One stream of several robots: batches equal to samples packed one by one, whatever is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.config import CacheConfig, DataConfig, MixtureConfig
from data.contracts import PackedBatch
from data.errors import InputError
from data.stream.episodes import cached_windows, episode_memory
from data.stream.loader import TokenStream
from data.stream.order.plan import Kind
from data.tokens.vocabulary import IGNORED_LABEL
from pretrain.config import TrainerConfig
from tests.support.reference_batches import Source, reference_rows
from tests.support.reference_samples import pack
from tests.support.robots_case import (
    ALOHA,
    EPISODES,
    ROBOTS,
    TRAINER,
    VARIANTS,
    check_equal,
    configured,
    write_sources,
)
from tests.support.shards_case import episode, write_dataset
from tests.unit.test_data_stream_placeholder_batches import check_alike


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    return write_sources(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("memory", ["enough", "little", "little, cache"])
@pytest.mark.parametrize("variants", [0, VARIANTS])
@pytest.mark.parametrize("robots", [(0, 1, 2, 3), (1, 0, 3), (2,)], ids=str)
def test_a_mixture_of_robots_is_packed_as_one_by_one(
    sources: list[Source],
    tmp_path: Path,
    robots: tuple[int, ...],
    variants: int,
    memory: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With states where all have some; two rounds, so that the second one finds a full cache."""
    chosen = [sources[number] for number in robots]
    config = configured(chosen, 2 not in robots, variants)
    if memory != "enough":  # memory for one episode, and for a few time steps at a time
        monkeypatch.setattr(episode_memory, "MEGABYTE", 1)
        monkeypatch.setattr(cached_windows, "_ROWS", 9)
    if "cache" in memory:
        config = replace(config, cache=CacheConfig(str(tmp_path), "1GB"))
    widest = max(s.chunk for s in chosen), max(s.index.embodiment.action_dim for s in chosen)
    for _ in range(1 + ("cache" in memory)):
        with TokenStream(config, TRAINER, seed=3) as stream:
            for step in range(3):
                rows = reference_rows(stream, step, config, chosen)
                expected = pack(rows, TRAINER.sequence_length, widest, stream.plan.largest_segment)
                (found,) = stream.micro_batches(step, 0, 1)
                check_equal(found, expected)
                present = np.stack([chosen[n].index.embodiment.present[0] for n in range(len(chosen))])
                assert present.all()  # the first number, with a label in every sample
                assert (found.labels.ravel()[found.action_starts] != IGNORED_LABEL).all()


def test_any_ranks_and_a_resumed_stream_give_the_same_global_batches(sources: list[Source]) -> None:
    config = configured(sources, variants=VARIANTS)
    with TokenStream(config, TRAINER, seed=1) as stream:
        expected = [stream.micro_batches(step, 0, 1)[0] for step in range(4)]
    for ranks in (2, 4):
        for rank in range(ranks):
            with TokenStream(config, TRAINER, seed=1) as stream:
                for step in (3, 2):  # resumed, and not in order
                    (found,) = stream.micro_batches(step, rank, ranks)
                    part = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
                    check_equal(found, expected[step].rows(part.start, part.stop))
    small = replace(TRAINER, micro_batch=1)
    with TokenStream(config, small, seed=1) as stream:
        for number, found in enumerate(stream.micro_batches(3, 0, 1)):
            check_equal(found, expected[3].rows(number, number + 1))


def test_numbers_that_a_robot_does_not_have_are_neither_labels_nor_targets(sources: list[Source]) -> None:
    with TokenStream(configured(sources), TRAINER, seed=0) as stream:
        (batch,) = stream.micro_batches(0, 0, 1)
        planned = stream.plan.step(0)
    assert batch.action_targets.shape[1:] == batch.action_present.shape[1:] == (3, 14)
    of = planned.datasets[planned.kinds == Kind.ACTION]
    labels = batch.labels.ravel()
    for start, number, targets, present in zip(
        batch.action_starts, of, batch.action_targets, batch.action_present, strict=True
    ):
        robot, chunk = ROBOTS[number], sources[number].chunk
        assert np.array_equal(present[:chunk, : robot.action_dim], np.tile(robot.present, (chunk, 1)))
        assert present.sum() == chunk * robot.present.sum()
        assert not targets[~present].any()
        block = labels[start : start + robot.action_dim]  # the label at a position is the token after it
        assert ((block == IGNORED_LABEL) == ~robot.present).all()
    assert set(of.tolist()) == {0, 1, 2, 3}


def test_sources_name_the_data_set_of_each_segment(sources: list[Source]) -> None:
    with TokenStream(configured(sources), TRAINER, seed=0) as stream:
        (batch,) = stream.micro_batches(1, 0, 1)
        planned = stream.plan.step(1)
    assert batch.sources.shape == (4, batch.segments.max() + 1)
    for row, of_segments in enumerate(batch.sources):
        expected = planned.datasets[planned.sequences == row]
        assert of_segments.tolist() == [0, *expected, *[0] * (len(of_segments) - 1 - len(expected))]


def test_memory_is_shared_by_the_bytes_of_the_time_steps(
    sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(sources, variants=VARIANTS)
    total = sum(range(5, 9))  # time steps of a data set
    with TokenStream(config, TRAINER, seed=0) as stream:
        rings = stream._memory.rings
        assert [ring.size for ring in rings] == [total] * 4
        demand = sum(ring.steps.nbytes for ring in rings)
        assert [ring.steps.frames.shape[1] for ring in rings] == [1 + VARIANTS] * 4
    monkeypatch.setattr(episode_memory, "MEGABYTE", demand // 2)
    with TokenStream(replace(config, memory_megabytes=1), TRAINER, seed=0) as stream:
        assert [ring.size for ring in stream._memory.rings] == [total // 2] * 4
    same = replace(config, sources=[*config.sources[:1], replace(config.sources[0], weight=2.0)])
    with TokenStream(same, TRAINER, seed=0) as stream:
        assert len(stream._memory.rings) == 1  # of one form


def test_bad_episodes_are_counted_over_all_rings(
    tmp_path: Path, sources: list[Source], caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(sources)
    for number in (0, 1):
        folder = tmp_path / str(number)
        source = sources[number].index
        folder.mkdir()
        for path in Path(source.url).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        entry = source.split("train")[2]
        content = bytearray((folder / entry.shard).read_bytes())
        content[entry.offset + 700] ^= 1
        (folder / entry.shard).write_bytes(content)
        config.sources[number].url = str(folder)
    epoch = replace(TRAINER, global_batch=128)
    with TokenStream(replace(config, skip_bad_episodes=2), epoch, seed=0) as stream:
        (found,), (blank,) = stream.micro_batches(0, 0, 1), stream.placeholder_batches(0, 0, 1)
        assert stream._memory.skipped == [2, EPISODES - 1 + 2]
        check_alike(found, blank)
    assert "skipped 2 of data.skip_bad_episodes=2 episodes" in caplog.text
    with (
        TokenStream(replace(config, skip_bad_episodes=1), epoch, seed=0) as stream,
        pytest.raises(InputError, match=r"episode lift/demo_\d+, offset"),
    ):
        stream.micro_batches(0, 0, 1)


@pytest.mark.parametrize("variants", [0, VARIANTS])
def test_placeholders_of_several_robots(sources: list[Source], variants: int) -> None:
    with TokenStream(configured(sources, variants=variants), TRAINER, seed=0) as stream:
        (planned,), (blank,) = stream.micro_batches(2, 1, 2), stream.placeholder_batches(2, 1, 2)
    check_alike(planned, blank)


def test_validation_shows_recorded_frames_and_keeps_widths_and_numbers(
    sources: list[Source], tmp_path: Path
) -> None:
    """The second data set has no held-out episode; it still counts for widths and numbers."""
    only = [episode(10, 6, ALOHA, VARIANTS)]
    index = replace(
        write_dataset(tmp_path / "other", episodes=only, robot=ALOHA, variants=VARIANTS),
        state_ranges=sources[1].index.state_ranges,
    )
    index.save(str(tmp_path / "other"))
    chosen = [sources[0], Source(index, only, 3), sources[2]]
    config = configured(chosen, variants=VARIANTS)
    held_out = [
        Source(sources[number].index, [episode(10 * number, 4, ROBOTS[number], VARIANTS)], 2)
        for number in (0, 2)
    ]
    with TokenStream(config, TRAINER, seed=0, split="val_ind") as stream:
        (batch,) = stream.micro_batches(0, 0, 1)
        assert not stream.plan.step(0).variants.any()
        assert [source.name for source in stream.sources] == ["libero", "other", "droid"]
        rows = reference_rows(stream, 0, config, held_out)
        expected = pack(rows, TRAINER.sequence_length, (3, 14), stream.plan.largest_segment)
    check_equal(replace(batch, sources=batch.sources // 2), expected)
    assert set(np.unique(batch.sources)) == {0, 2}


def test_world_samples_alone_need_no_whole_chunk_in_memory(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episode_memory, "MEGABYTE", 1)
    cache = CacheConfig(str(tmp_path), "1GB")
    config = replace(configured(sources[:1]), predicted_frames=1, chunk=50, mixture=MixtureConfig(0, 1))
    few = TrainerConfig(global_batch=1, sequence_length=512)

    def read(config: DataConfig) -> Iterator[PackedBatch]:
        with TokenStream(config, few, seed=0) as stream:
            for step in range(12):
                yield from stream.micro_batches(step, 0, 1)

    expected = list(read(replace(config, memory_megabytes=1 << 30)))
    for _ in range(2):
        for found, batch in zip(read(replace(config, cache=cache)), expected, strict=True):
            check_equal(found, batch)
