"""Preparation in parts: the same bytes after any order, interruption or damage; memory is bounded."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from data.augmentation_config import AugmentationConfig
from data.config import PrepareConfig
from data.contracts import DEFAULT_EMBODIMENT, Demonstration, Embodiment, Statistics
from data.errors import InputError
from data.prepare.left_out import NOT_SUCCESSFUL, read_left_out
from data.prepare.parts import Part, finished_record, plan_parts
from data.prepare.preparer import Preparer, prepare
from data.prepare.statistics import summarise
from data.sources.files.source_files import LocalFiles
from data.sources.interface import DemonstrationReference
from data.sources.no_ops import DEFAULT_RULE, NoOpRule
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.storage.store import open_store
from data.tokens.action import ACTION_MAX, NAMED_RANGES, ActionRanges
from tests.support.libero_layout import demonstration, write_file

EPISODES = 9


class Tokenizer:
    """Codes are the mean red of 8 x 8 pixels. Kills this process at call number `dies_at`."""

    pixels, rows, columns, codebook_size, sha256 = 64, 8, 8, 256, "a" * 64

    def __init__(self, dies_at: int | None = None) -> None:
        self.calls, self.dies_at = 0, dies_at

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        self.calls += 1
        if self.calls == self.dies_at:
            os.kill(os.getpid(), 9)
        return frames[..., 0].reshape(-1, 8, 8, 8, 8).mean(axis=(2, 4)).astype(np.uint16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for task in range(3):
        demos = [demonstration(steps=5 + task, seed=10 * task + i) for i in range(EPISODES // 3)]
        write_file(tmp_path / "demos" / f"task{task}_demo.hdf5", demos)
    return tmp_path / "demos"


def config(source: Path, out: Path, **changes: object) -> PrepareConfig:
    made = PrepareConfig(source=str(source), out=str(out), shard_megabytes=0.022)  # two episodes a shard
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("variants", "shards"), [(0, 5), (1, 9)])
def test_parts_in_any_order_give_the_same_bytes(
    source: Path, tmp_path: Path, variants: int, shards: int
) -> None:
    index = prepare(Preparer(config(source, tmp_path / "a", variants=variants), Tokenizer()))
    assert len({entry.shard for entry in index.episodes}) == shards
    preparer = Preparer(config(source, tmp_path / "b", variants=variants), Tokenizer())

    def shuffled(parts: Sequence[Part], report: Callable[[int], None]) -> None:
        for part in random.Random(0).sample(list(parts), len(parts)):
            preparer.finish(part, report)

    assert prepare(preparer, run_parts=shuffled) == index
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert [entry.key for entry in index.episodes] == [
        f"task{t}/demo_{i}" for t in range(3) for i in range(3)
    ]
    assert all(read_episode(index, entry).length == entry.length for entry in index.episodes)


def test_a_killed_preparation_resumes_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    prepare(Preparer(config(source, tmp_path / "whole"), Tokenizer()))
    killed = config(source, tmp_path / "killed")
    program = (
        "from data.config import *\n"
        "from data.recipe_settings import *\n"
        "from tests.unit.test_data_prepare_parts import *\n"
        f"prepare(Preparer({killed!r}, Tokenizer(dies_at=12)))"  # two cameras: within the third of five parts
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    left = snapshot(tmp_path / "killed")
    assert "index.json" not in left
    assert len([name for name in left if name.endswith(".tar")]) == 2
    tokenizer = Tokenizer()
    progress: list[tuple[int, int]] = []
    prepare(Preparer(killed, tokenizer), lambda done, total: progress.append((done, total)))
    assert tokenizer.calls == 2 * (EPISODES - 4), "finished parts are not encoded again"
    assert progress[:3] == [(0, EPISODES), (2, EPISODES), (4, EPISODES)]
    assert progress[-1] == (EPISODES, EPISODES)
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("pattern", ["shard-000001-*.tar", "part-000001-*.values", "part-000001-*.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_part_is_written_again(source: Path, tmp_path: Path, pattern: str, damage: str) -> None:
    prepare(Preparer(config(source, tmp_path / "out"), Tokenizer()))
    before = snapshot(tmp_path / "out")
    path = next((tmp_path / "out").rglob(pattern))
    content = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 255]) if damage == "flip" else content[:-9])
    tokenizer = Tokenizer()
    prepare(Preparer(config(source, tmp_path / "out"), tokenizer))
    assert tokenizer.calls == 4
    assert snapshot(tmp_path / "out") == before


def test_a_record_with_other_checksums_is_not_trusted(source: Path, tmp_path: Path) -> None:
    prepare(Preparer(config(source, tmp_path / "out"), Tokenizer()))
    before = snapshot(tmp_path / "out")
    path = next((tmp_path / "out").rglob("part-000001-*.json"))
    record = json.loads(path.read_text())
    record["episodes"][0]["offset"] += 512
    path.write_text(json.dumps(record))
    prepare(Preparer(config(source, tmp_path / "out"), Tokenizer()))
    assert snapshot(tmp_path / "out") == before


def test_a_changed_input_makes_another_part(source: Path, tmp_path: Path) -> None:
    prepare(Preparer(config(source, tmp_path / "out"), Tokenizer()))
    store = open_store(str(tmp_path / "out"))

    def unfinished(tokenizer: Tokenizer | None = None, **changes: object) -> int:
        parts = Preparer(config(source, tmp_path / "out", **changes), tokenizer or Tokenizer()).plan()
        return sum(finished_record(store, part) is None for part in parts)

    assert unfinished() == 0
    assert unfinished(rotate=False) == 5
    assert unfinished(ranges="extremes", state_ranges="quantiles") == 0, "ranges are the index's alone"
    assert unfinished(augmentation=AugmentationConfig(seed=1)) == 0, "without variants nothing is drawn"
    prepare(Preparer(config(source, tmp_path / "varied", variants=1), Tokenizer()))
    varied = open_store(str(tmp_path / "varied"))
    for drawn, rewritten in ((AugmentationConfig(), 0), (AugmentationConfig(seed=1), 9)):
        made = config(source, tmp_path / "varied", variants=1, augmentation=drawn)
        parts = Preparer(made, Tokenizer()).plan()
        assert sum(finished_record(varied, part) is None for part in parts) == rewritten
    other = Tokenizer()
    other.sha256 = "b" * 64
    assert unfinished(other) == 5
    changed = source / "task1_demo.hdf5"
    os.utime(changed, (1, 1))  # tasks of three: its demonstrations 4 to 6 lie in parts 1 and 2
    assert unfinished() == 2


def test_parts_are_filled_up_to_the_limit() -> None:
    def reference(number: int, length: int) -> DemonstrationReference:
        return DemonstrationReference(Path("/"), str(number), str(number), "s", "t", "i", length, ("agent",))

    lengths = [10, 10, 10, 500, 10, 10]
    parts = plan_parts([reference(i, n) for i, n in enumerate(lengths)], 100, 15_000, "settings")
    assert [[r.length for r in part.references] for part in parts] == [[10, 10], [10], [500], [10, 10]]
    assert [part.number for part in parts] == [0, 1, 2, 3]
    assert len({part.name for part in parts}) == 4


@pytest.mark.parametrize(("variants", "shards"), [(0, 2), (3, 5)])
def test_shards_stay_below_their_size(source: Path, tmp_path: Path, variants: int, shards: int) -> None:
    made = config(source, tmp_path / "out", shard_megabytes=0.05, variants=variants)
    prepare(Preparer(made, Tokenizer()))
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert len(sizes) == shards
    assert max(sizes) <= 50_000


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def __init__(self, count: int) -> None:
            self.count, self.files = count, LocalFiles(tmp_path)

        def embodiment(self) -> Embodiment:
            return DEFAULT_EMBODIMENT

        def no_ops(self) -> NoOpRule:
            return DEFAULT_RULE

        def references(self) -> list[DemonstrationReference]:
            return [
                DemonstrationReference(tmp_path, str(i), f"e_{i}", "s", "t", "do it", 200, ("agent",))
                for i in range(self.count)
            ]

        def checked(self, references: Iterable[DemonstrationReference]) -> Iterator[DemonstrationReference]:
            return iter(references)

        def read(self, reference: DemonstrationReference) -> Demonstration:
            values = np.random.default_rng(int(reference.item)).normal(size=(200, 15))
            frames = {"agent": np.zeros((200, 64, 64, 3), np.uint8)}
            key, suite, task = reference.key, reference.suite, reference.task
            return Demonstration(
                key, suite, task, "do it", frames, values[:, :7], values[:, 7:].astype(np.float32)
            )

    def peak(count: int) -> int:
        monkeypatch.setattr("data.prepare.preparer.open_source", lambda config: Endless(count))
        tracemalloc.start()
        made = config(tmp_path, tmp_path / f"out{count}", shard_megabytes=0.2)
        index = prepare(Preparer(made, Tokenizer()))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(index.episodes) == count
        return highest

    few, many = peak(10), peak(60)
    frames = 200 * 64 * 64 * 3
    assert many < few + frames, "50 more demonstrations cost less than the frames of one"


def test_demonstrations_that_fail_in_the_replay_are_left_out(source: Path, tmp_path: Path) -> None:
    def replay(reference: DemonstrationReference, pixels: int) -> Demonstration | None:
        if reference.item == "demo_1" or reference.task == "task0":
            return None
        arrays = demonstration(seed=1)
        frames = {camera: np.full((6, pixels, pixels, 3), 9, np.uint8) for camera in reference.cameras}
        actions, states = arrays["actions"], np.zeros((6, 8), np.float32)
        return Demonstration(reference.key, "s", reference.task, "do it", frames, actions, states)

    made = config(source, tmp_path / "out", replay=True)
    index = prepare(Preparer(made, Tokenizer(), replay))
    assert [e.key for e in index.episodes] == [f"task{t}/demo_{i}" for t in (1, 2) for i in (0, 2)]
    assert int(read_episode(index, index.episodes[0]).codes["wrist"].max()) == 9
    dropped = [
        json.loads(path.read_text())["dropped"] for path in sorted((tmp_path / "out/parts").glob("*.json"))
    ]
    assert dropped[0] == ["task0/demo_0", "task0/demo_1"]
    left_out = read_left_out(open_store(str(tmp_path / "out")), index.fingerprint)
    assert left_out is not None
    assert list(left_out.reasons) == [
        "task0/demo_0",
        "task0/demo_1",
        "task0/demo_2",
        "task1/demo_1",
        "task2/demo_1",
    ]
    assert set(left_out.reasons.values()) == {NOT_SUCCESSFUL}
    assert DatasetIndex.load(str(tmp_path / "out")) == index
    with pytest.raises(InputError, match="replay=true: needs a simulator"):
        prepare(Preparer(made, Tokenizer()))
    with pytest.raises(InputError, match="none of its 9 demonstrations succeeded"):
        prepare(Preparer(config(source, tmp_path / "none", replay=True), Tokenizer(), lambda *_: None))


def test_action_ranges_are_named_measured_or_explicit(source: Path, tmp_path: Path) -> None:
    def ranges(**changes: object) -> tuple[ActionRanges, Statistics]:
        made = config(source, tmp_path / "-".join(changes), **changes)
        index = prepare(Preparer(made, Tokenizer()))
        assert DatasetIndex.load(made.out).action_ranges == index.action_ranges
        return index.action_ranges, index.statistics["actions"]

    assert ranges()[0].maximum == ACTION_MAX
    assert ranges(ranges="rynnvla")[0] == NAMED_RANGES["rynnvla"]
    found, actions = ranges(ranges="extremes", rotate=False)
    assert (found.minimum, found.maximum) == (actions.minimum, actions.maximum)
    found, actions = ranges(ranges="quantiles", batch_size=2)
    assert (found.minimum, found.maximum) == (actions.q01, actions.q99)
    found, _ = ranges(action_minimum=[-2.0] * 7, action_maximum=[3.0] * 7)
    assert (found.minimum, found.maximum) == ((-2.0,) * 7, (3.0,) * 7)
    with pytest.raises(InputError, match="belong together"):
        ranges(action_minimum=[0.0] * 7)
    with pytest.raises(InputError, match=r"have 6 numbers, an action of .* has 7"):
        ranges(action_minimum=[0.0] * 6, action_maximum=[1.0] * 6)


@given(
    arrays(
        np.float32,
        strategies.tuples(strategies.integers(1, 60), strategies.integers(1, 3)),
        elements=strategies.floats(-1e6, 1e6, width=32),
    ),
    strategies.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_statistics_equal_numpy(values: NDArray[np.float32], parts: int) -> None:
    found = summarise(np.array_split(values, parts))
    exact = values.astype(np.float64)
    assert found.count == len(values)
    assert found.minimum == tuple(exact.min(axis=0))
    assert found.maximum == tuple(exact.max(axis=0))
    assert found.mean == pytest.approx(exact.mean(axis=0), rel=1e-12, abs=1e-9)
    assert found.std == pytest.approx(exact.std(axis=0), rel=1e-9, abs=1e-6)
    assert found.q01 == pytest.approx(np.quantile(exact, 0.01, axis=0), rel=1e-12, abs=1e-9)
    assert found.q99 == pytest.approx(np.quantile(exact, 0.99, axis=0), rel=1e-12, abs=1e-9)


def test_statistics_do_not_hold_all_values() -> None:
    class Parts:
        def __iter__(self):
            for seed in range(100):
                yield np.random.default_rng(seed).normal(size=(10_000, 15)).astype(np.float32)

    tracemalloc.start()
    found = summarise(Parts())
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.count == 1_000_000
    assert found.q99 == pytest.approx([2.326] * 15, abs=0.02)
    assert highest < 60e6, "fifteen million values are 60 MB in float32 already"
