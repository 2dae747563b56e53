"""The token stream over a real (small) data set: right tokens, same batches for any ranks, clear errors."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli.main import main
from data.config import DataConfig, MixtureConfig, MixtureSource, Shuffle
from data.contracts import Episode, PackedBatch
from data.errors import InputError
from data.prepare.statistics import summarise
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, ImageFormat
from data.storage.shards import ShardWriter
from data.storage.store import open_store
from data.stream.episodes import episode_memory
from data.stream.loader import TokenStream
from data.stream.order.plan import Kind
from data.stream.setup import make_plan
from data.tokens.action import DEFAULT_RANGES, ActionRanges, encode
from data.tokens.image_block import image_block, image_block_length
from data.tokens.prompt_text import WORLD_TEXT, action_text
from data.tokens.state import STATE_MAX, STATE_MIN
from data.tokens.text import TextTokenizer
from pretrain.config import TrainerConfig

TRAINER = TrainerConfig(global_batch=4, sequence_length=512)
FIELDS = ("tokens", "labels", "positions", "segments", "blocks")
ACTION_FIELDS = ("action_starts", "action_targets", "action_present")
# 3 steps leave no action window of 5; the last is the validation split's.
LENGTHS, TASKS = (
    (7, 3, 12, 9, 8),
    ("lift the cube", "open the drawer", "lift the cube", "wipe", "lift the cube"),
)


def make_episode(number: int) -> Episode:
    random, length = np.random.default_rng(number), LENGTHS[number]
    return Episode(
        key=f"demos/demo_{number}",
        suite="test",
        task=TASKS[number].replace(" ", "_"),
        instruction=TASKS[number],
        codes={name: random.integers(0, 512, (length, 2, 2), dtype=np.uint16) for name in ("agent", "wrist")},
        actions=random.uniform(-1, 1, (length, 7)),
        states=random.uniform(STATE_MIN, STATE_MAX, (length, 8)).astype(np.float32),
    )


EPISODES = [make_episode(number) for number in range(len(LENGTHS))]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("shards"))


def write_dataset(folder: Path, ranges: ActionRanges = DEFAULT_RANGES, states: bool = True) -> str:
    writer = ShardWriter(open_store(str(folder)), limit=8_000)
    episodes = [each if states else replace(each, states=0 * each.states) for each in EPISODES]
    for episode in episodes:
        writer.add(episode)
    entries = [
        EpisodeEntry(
            key=e.key, shard=at.shard, offset=at.offset, size=at.size, sha256=at.sha256, length=e.length,
            suite=e.suite, task=e.task, instruction=e.instruction,
            split="val_ind" if e is episodes[-1] else "train",
        )
        for e, at in zip(episodes, writer.close(), strict=True)
    ]  # fmt: skip
    DatasetIndex(
        image=ImageFormat(pixels=32, rows=2, columns=2, codebook_size=512, tokenizer_sha256="0"),
        cameras=("agent", "wrist"),
        action_ranges=ranges,
        statistics={
            "actions": summarise([e.actions for e in episodes]),
            "states": summarise([e.states for e in episodes]),
        },
        episodes=EpisodeTable.of(entries),
    ).save(str(folder))
    return str(folder)


def expected_tokens(
    kind: int, episode: Episode, t: int, camera: str = "agent", history: int = 2
) -> list[int]:
    """The template, written again from the raw episode."""
    text = TextTokenizer.load()
    frames = [image_block(codes, 32).tolist() for codes in episode.codes[camera]]
    actions = [[10004, *ids, 15004] for ids in encode(episode.actions).tolist()]
    if kind == Kind.WORLD:
        return [0, *text.encode(WORLD_TEXT), *frames[t], *actions[t], 8710, *frames[t + 1], 8710]
    seen = chain(*frames[max(0, t - history + 1) : t + 1])
    answer = chain(*actions[t : t + 5])
    return [0, *text.encode(action_text(episode.instruction)), *seen, 8710, *answer, 8710]


def samples_of(batch: PackedBatch) -> list[list[int]]:
    return [
        batch.tokens[row][batch.segments[row] == number].tolist()
        for row in range(len(batch.tokens))
        for number in range(1, batch.segments[row].max() + 1)
    ]


@pytest.mark.parametrize(("camera", "history"), [("agent", 2), ("wrist", 3)])
def test_samples_are_those_of_the_plan(url: str, camera: str, history: int) -> None:
    config = DataConfig(url, cameras=[camera], history=history)
    with TokenStream(config, TRAINER, seed=3) as stream:
        for step in range(6):  # more than an epoch
            planned = stream.plan.step(step)
            (batch,) = stream.micro_batches(step, 0, 1)
            expected = [
                expected_tokens(kind, EPISODES[e], t, camera, history)
                for kind, e, t in zip(planned.kinds, planned.episodes, planned.times, strict=True)
            ]
            assert samples_of(batch) == expected
            assert max(map(len, expected)) <= stream.longest_sample
            assert batch.tokens.max() < stream.vocabulary_size


@pytest.mark.parametrize("shuffle", ["full", "local"])
def test_an_epoch_holds_every_window_once(url: str, shuffle: Shuffle) -> None:
    windows = {
        kind: sorted(
            expected_tokens(kind, e, t)
            for e in EPISODES[:-1]
            for t in range(e.length - (4 if kind == Kind.ACTION else 1))
        )
        for kind in Kind
    }
    trainer = TrainerConfig(global_batch=1, sequence_length=256)
    for kind, mixture in ((Kind.ACTION, MixtureConfig(1, 0)), (Kind.WORLD, MixtureConfig(0, 1))):
        config = DataConfig(url, mixture=mixture, shuffle=shuffle, shuffle_episodes=1)
        with TokenStream(config, trainer, seed=0) as stream:
            steps = -(-len(windows[kind]) // int(stream.plan.layout.counts[0, kind]))
            seen = [
                s for step in range(steps) for b in stream.micro_batches(step, 0, 1) for s in samples_of(b)
            ]
        assert {tuple(sample) for sample in seen} == {tuple(sample) for sample in windows[kind]}


@given(step=st.integers(0, 1000), ranks=st.sampled_from([1, 2, 4]), micro=st.sampled_from([None, 1, 3]))
@settings(max_examples=25, deadline=None)
def test_any_ranks_and_micro_batches_give_the_same_global_batch(
    url: str, step: int, ranks: int, micro: int | None
) -> None:
    with TokenStream(DataConfig(url), TRAINER, seed=1) as stream:
        (whole,) = stream.micro_batches(step, 0, 1)
    with TokenStream(DataConfig(url), replace(TRAINER, micro_batch=micro), seed=1) as stream:
        parts = [batch for rank in range(ranks) for batch in stream.micro_batches(step, rank, ranks)]
    assert all(len(part.tokens) <= (micro or 4) for part in parts)
    for field in FIELDS:
        joined = np.concatenate([getattr(part, field) for part in parts])
        assert joined.dtype == np.int32
        assert np.array_equal(joined, getattr(whole, field))
    begins = np.cumsum([0, *(part.tokens.size for part in parts[:-1])])
    starts = [part.action_starts + begin for part, begin in zip(parts, begins, strict=True)]
    assert np.array_equal(np.concatenate(starts), whole.action_starts)
    targets = np.concatenate([part.action_targets for part in parts])
    assert np.array_equal(targets, whole.action_targets)


@given(
    ranks=st.sampled_from([1, 2, 4]), resumed=st.integers(0, 300), prefetch=st.integers(0, 3),
    readers=st.integers(1, 4), steps=st.integers(1, 3), shuffle=st.sampled_from(["full", "local"]),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_a_resumed_run_with_other_ranks_and_prefetch_gets_the_same_global_batches(
    url: str, ranks: int, resumed: int, prefetch: int, readers: int, steps: int, shuffle: Shuffle
) -> None:
    numbers, config = range(resumed, resumed + steps), DataConfig(url, shuffle=shuffle, shuffle_episodes=1)
    with TokenStream(config, TRAINER, seed=1) as stream:
        expected = [stream.micro_batches(step, 0, 1)[0] for step in numbers]
    config = replace(config, prefetch=prefetch, readers=readers)
    for rank in range(ranks):
        with TokenStream(config, TRAINER, seed=1) as stream:
            found = [stream.micro_batches(step, rank, ranks)[0] for step in numbers]
        rows = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
        for one, whole in zip(found, expected, strict=True):
            for field in FIELDS:
                assert np.array_equal(getattr(one, field), getattr(whole, field)[rows])


def test_the_order_of_requests_does_not_matter(url: str) -> None:
    with TokenStream(DataConfig(url), TRAINER, seed=0) as stream:
        forward = [stream.micro_batches(step, 0, 1)[0].tokens for step in range(5)]
        for step in (4, 0, 3, 3, 1, 2):
            assert np.array_equal(stream.micro_batches(step, 0, 1)[0].tokens, forward[step])


def test_the_next_step_is_prepared_ahead(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    original = TokenStream._assemble
    monkeypatch.setattr(
        TokenStream, "_assemble", lambda self, step, *rank: steps.append(step) or original(self, step, *rank)
    )
    with TokenStream(DataConfig(url), TRAINER, seed=0) as stream:
        for step in range(3):
            stream.micro_batches(step, 0, 1)
    assert steps[:3] == [0, 1, 2]
    assert steps[3:] in ([], [3])  # closed before or after step 3 was started


def test_the_mixture_is_exact_in_every_step(url: str) -> None:
    with TokenStream(DataConfig(url), TRAINER, seed=0) as stream:
        for step in range(8):
            lengths = [len(sample) for sample in samples_of(stream.micro_batches(step, 0, 1)[0])]
            kinds = stream.plan.step(step).kinds
            assert len(lengths) == len(kinds) == 2 * int((kinds == Kind.WORLD).sum())


def test_validation_split_is_another_stream(url: str) -> None:
    with TokenStream(DataConfig(url), TRAINER, seed=0, split="val_ind") as stream:
        planned = stream.plan.step(0)
        (batch,) = stream.micro_batches(0, 0, 1)
    first = expected_tokens(int(planned.kinds[0]), EPISODES[-1], int(planned.times[0]))
    assert samples_of(batch)[0] == first


def test_closing_ends_the_thread(url: str) -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("token-stream")]

    before = threads()
    with TokenStream(DataConfig(url), TRAINER, seed=0) as stream:
        stream.micro_batches(0, 0, 1)
        assert len(threads()) == len(before) + 1
    assert threads() == before


def test_ids_of_ranks_tile_for_any_number_of_ranks(url: str) -> None:
    plan = make_plan(DataConfig(url), TRAINER, seed=0)
    (whole,) = plan.ids_of_ranks(step=7, ranks=1)
    assert whole
    assert all(isinstance(i, int) for i in whole)
    for ranks in (2, 4):
        parts = plan.ids_of_ranks(step=7, ranks=ranks)
        assert len(parts) == ranks
        assert list(chain(*parts)) == whole
    with pytest.raises(InputError, match="global_batch is 4, which 3 data-parallel ranks"):
        plan.ids_of_ranks(step=7, ranks=3)
    with pytest.raises(InputError, match="which 0 data-parallel ranks"):
        plan.ids_of_ranks(step=7, ranks=0)


def test_memory_is_bounded_and_changes_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with TokenStream(DataConfig(url), TRAINER, seed=0) as stream:
        expected = [stream.micro_batches(step, 0, 1)[0] for step in range(4)]
        (size,) = [ring.size for ring in stream._memory.rings]
    assert size == sum(LENGTHS[:-1])  # no larger than all episodes
    step_bytes = 2 * (image_block_length(2, 2) + 9) + 4 * 7
    monkeypatch.setattr(
        episode_memory, "MEGABYTE", 14 * step_bytes
    )  # room for 14 time steps: about one episode
    with TokenStream(replace(DataConfig(url), memory_megabytes=1), TRAINER, seed=0) as stream:
        assert [ring.size for ring in stream._memory.rings] == [14]
        for step, batch in enumerate(expected):
            (found,) = stream.micro_batches(step, 0, 1)
            for field in FIELDS:
                assert np.array_equal(getattr(found, field), getattr(batch, field))
            for field in ACTION_FIELDS:
                assert np.array_equal(getattr(found, field), getattr(batch, field))


def test_several_data_sets_are_mixed_and_named(url: str, tmp_path: Path) -> None:
    second = write_dataset(tmp_path / "second")
    sources = [MixtureSource(url, 3.0), MixtureSource(second, 1.0)]
    config = DataConfig("", sources=sources)
    with TokenStream(config, TRAINER, seed=0) as stream:
        (batch,) = stream.micro_batches(5, 0, 1)
        planned = stream.plan.step(5)
        names = {key.partition("/")[0] for key in stream.epochs(8)}
        prints = stream.fingerprint, DatasetIndex.load(url).fingerprint
    expected = [
        expected_tokens(kind, EPISODES[e], t)
        for kind, e, t in zip(planned.kinds, planned.episodes, planned.times, strict=True)
    ]
    assert samples_of(batch) == expected
    assert abs((planned.datasets == 0).sum() - 0.75 * len(planned)) < 1
    assert names == {Path(url).name, "second"}
    assert prints[0] != prints[1]
    with pytest.raises(InputError, match=r"give either data.url=... or data.sources"):
        TokenStream(replace(config, url=url), TRAINER, seed=0)


def test_skipping_a_bad_episode_moves_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = write_dataset(tmp_path)
    with TokenStream(DataConfig(url), TRAINER, seed=0) as stream:
        expected = [stream.micro_batches(step, 0, 1)[0] for step in range(3)]
    bad = DatasetIndex.load(url).split("train")[2]
    content = bytearray((tmp_path / bad.shard).read_bytes())
    content[bad.offset + 700] ^= 1
    (tmp_path / bad.shard).write_bytes(content)
    padding = {"tokens": 0, "labels": -100, "positions": 0, "segments": 0, "blocks": 0}
    with TokenStream(DataConfig(url, skip_bad_episodes=1), TRAINER, seed=0) as stream:
        for step, whole in enumerate(expected):
            planned, (found,) = stream.plan.step(step), stream.micro_batches(step, 0, 1)
            numbers = [
                int((planned.sequences[:i] == planned.sequences[i]).sum()) + 1 for i in range(len(planned))
            ]
            gone = np.zeros_like(whole.segments, bool)
            for row, number, episode in zip(planned.sequences, numbers, planned.episodes, strict=True):
                if episode == 2:
                    gone[row] |= whole.segments[row] == number
            assert gone.any()
            kept = ~gone.ravel()[whole.action_starts]
            for field in ACTION_FIELDS:
                assert np.array_equal(getattr(found, field), getattr(whole, field)[kept])
            for field, empty in padding.items():
                assert np.array_equal(getattr(found, field), np.where(gone, empty, getattr(whole, field)))
        assert stream._memory.skipped == [2]
    assert f"skipped 1 of data.skip_bad_episodes=1 episodes: {url}: shard {bad.shard}" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": ["left"]}, r"no camera 'left', the data set has agent, wrist"),
        ({"chunk": 13}, r"no action window in 4 episodes of at most 12 steps"),
        ({"chunk": 0}, r"data.chunk is 0, expected at least 1"),
        ({"history": 0}, r"data.history is 0, expected at least 1"),
        ({"history": 10**9}, r"data.history=1000000000: so many .*; make data.history smaller"),
        ({"text_tokenizer": "/nowhere/tokenizer.json"}, r"cannot read the text tokenizer"),
        ({"url": "/nowhere"}, r"/nowhere: no index.json there"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_data_are_refused(
    url: str, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        TokenStream(replace(DataConfig(url), **change), TRAINER, seed=0)


def test_states_that_a_data_set_lacks_are_refused(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Formats without states, and WorldVLA's published samples, have zeros in their place."""
    without = write_dataset(tmp_path, states=False)
    config = DataConfig(sources=[MixtureSource(url), MixtureSource(without)])
    with TokenStream(config, TRAINER, seed=0) as stream:
        assert stream.longest_sample > 0
    message = (
        f"{without}: data.state=true, but all its states are zeros: .*; set data.state=false, or prepare"
    )
    with pytest.raises(InputError, match=message) as caught:
        TokenStream(replace(config, state=True), TRAINER, seed=0)
    assert "\n" not in str(caught.value)
    words = ["run.name=x", f"run.dir={tmp_path}/runs", f"data.url={without}", "data.state=true", "model=tiny"]
    assert main(["train", *words]) == 2
    assert "data.state=true, but all its states are zeros" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_an_empty_split_is_refused(url: str) -> None:
    with pytest.raises(
        InputError, match=r"no episode in split 'val_ood'; the data set holds train 4, val_ind 1"
    ):
        TokenStream(DataConfig(url), TRAINER, seed=0, split="val_ood")


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_shard_stops_the_stream_and_is_named(tmp_path: Path, damage: str) -> None:
    url = write_dataset(tmp_path)
    entry = DatasetIndex.load(url).split("train")[2]
    shard = tmp_path / entry.shard
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        shard.write_bytes(content[: entry.offset + 100])
    elif damage == "flipped":
        content[entry.offset + 700] ^= 1
        shard.write_bytes(content)
    else:
        shard.unlink()
    expected = rf"{entry.shard}, episode demos/demo_2, offset {entry.offset}"
    trainer = replace(TRAINER, global_batch=64)  # an epoch in one step
    with TokenStream(DataConfig(url), trainer, seed=0) as stream, pytest.raises(InputError, match=expected):
        stream.micro_batches(0, 0, 1)
