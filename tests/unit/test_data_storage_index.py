"""The index and its columns: read as written, small in memory, and refused when damaged in any way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from data.errors import InputError
from data.storage.episode_entry import SPLITS, EpisodeEntry, Task
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex
from tests.support.shards_case import write_dataset


def damaged_index(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return apply


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:100], "not valid JSON"),
        (lambda content: b"[]", "expected a JSON object"),
        (lambda content: b"[" * 100_000, "not valid JSON"),
        (damaged_index(lambda v: v.update(schema=9)), "schema 9"),
        (damaged_index(lambda v: v["image"].pop("rows")), "rows is nothing"),
        (damaged_index(lambda v: v["episodes"].update(sha256=5)), "sha256 is 5, expected a text"),
        (damaged_index(lambda v: v["episodes"].update(sha256="0" * 64)), "expected 000000000000; copy"),
        (damaged_index(lambda v: v["episodes"].update(file="../../etc/passwd")), "plain relative name"),
        (damaged_index(lambda v: v["episodes"].update(file="gone.safetensors")), "cannot be read"),
        (damaged_index(lambda v: v.update(shards=[])), "column shard ranges from 0 to 0, expected 0 to -1"),
        (damaged_index(lambda v: v.update(tasks=[])), "column task"),
        (damaged_index(lambda v: v["tasks"][0].update(instruction="lift it")), "fingerprint"),
        (damaged_index(lambda v: v["action_ranges"].update(minimum=[10**400] * 7)), "finite numbers"),
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "index.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=reason):
        DatasetIndex.load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"length": None}, "column length is nothing, expected int32"),
        ({"length": np.zeros(3, np.int32)}, "column length ranges from 0 to 0, expected 1"),
        ({"length": np.ones(3, np.int64)}, "column length is int64"),
        ({"size": np.full(3, 1 << 60)}, "column size ranges"),
        ({"offset": np.full(3, -512)}, "column offset ranges"),
        ({"sha256": np.zeros((3, 31), np.uint8)}, "column sha256 is uint8"),
        ({"split": np.full(3, 3, np.uint8)}, "column split ranges from 3 to 3, expected 0 to 2"),
        ({"key_end": np.array([5, 4, 3])}, "key_end decreases"),
        ({"key_end": np.array([5, 6, 99])}, "column key_end ranges"),
        ({"keys": np.frombuffer(b"../../etc/passwd" * 3, np.uint8)[:33]}, None),
    ],
)
def test_broken_columns_are_refused(tmp_path: Path, change: dict[str, Any], reason: str | None) -> None:
    table = write_dataset(tmp_path).episodes
    columns = load_arrays(table.to_bytes())
    columns.update(change)
    content = save_arrays({name: value for name, value in columns.items() if value is not None})
    with pytest.raises(InputError, match=reason or "cannot name an archive member"):
        _ = EpisodeTable.parse(content, "x", table.shards, table.tasks)[0]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_overwritten_columns_never_crash_the_reader(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(COLUMNS) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=24))
    content = (COLUMNS[:position] + noise + COLUMNS[position + len(noise) :])[: len(COLUMNS)]
    try:
        table = EpisodeTable.parse(content, "x", ["a.tar"], [Task("s", "t", "i")])
        assert len(list(table)) == len(table)
    except InputError:
        return


def entries(count: int) -> Iterator[EpisodeEntry]:
    for i in range(count):
        yield EpisodeEntry(
            f"e_{i}", f"s{i // 900}.tar", i % 900 * 1024, 1024, f"{i:064x}", 5 + i % 9, "s", f"t{i % 7}",
            "do it", SPLITS[i % 3],
        )  # fmt: skip


COLUMNS = EpisodeTable.of(dataclasses.replace(e, shard="a.tar", task="t") for e in entries(4)).to_bytes()


def test_a_table_is_read_as_it_was_written() -> None:
    listed = list(entries(2000))
    table = EpisodeTable.of(listed)
    again = EpisodeTable.parse(table.to_bytes(), "x", table.shards, table.tasks)
    assert list(again) == listed == list(table)
    assert again.sha256 == table.sha256
    assert table.lengths.tolist() == [e.length for e in listed]
    held_out = again.split("val_ind")
    assert list(held_out) == [e for e in listed if e.split == "val_ind"]
    assert held_out.lengths.tolist() == [e.length for e in held_out]
    assert list(held_out[3:5]) == [held_out[3], held_out[4]]
    assert held_out[-1].key == "e_1999"
    assert len(table.split("other")) == 0
    assert EpisodeTable.of(held_out).sha256 == hashlib.sha256(held_out.to_bytes()).hexdigest()
    assert len(EpisodeTable.parse(held_out.to_bytes(), "x", held_out.shards, held_out.tasks)) == 667
    with pytest.raises(InputError, match="occurs twice"):
        EpisodeTable.of([*listed[:3], listed[1]])


def test_memory_of_a_large_table_is_that_of_its_columns() -> None:
    """At most 120 bytes an episode stay in memory: no Python object for each."""
    count = 200_000
    table = EpisodeTable.of(entries(1000))
    columns = load_arrays(table.to_bytes())
    large = {
        name: np.tile(value, (count // 1000, 1) if value.ndim == 2 else count // 1000)
        for name, value in columns.items()
    }
    large["key_end"] = np.arange(1, count + 1) * 5
    content = save_arrays({**large, "keys": np.full(count * 5, ord("k"), np.uint8)})
    tracemalloc.start()
    read = EpisodeTable.parse(content, "x", table.shards, table.tasks)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read) == count
    assert read[count - 1].key == "kkkkk"
    assert used < 120 * count


def test_a_missing_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="worldvla prepare"):
        DatasetIndex.load(str(tmp_path))
