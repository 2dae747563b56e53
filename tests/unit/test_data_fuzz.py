"""Untrusted shards and indexes: equal data, or an InputError with its location."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from data.contracts import Episode
from data.errors import InputError
from data.storage.episode_reader import read_episode
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex
from data.storage.shards import COMPRESSIONS, decode_episode, encode_episode
from tests.support.shards_case import episode, equal, write_dataset

COUNT = 3
Result = TypeVar("Result")
Random = np.random.Generator


def flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for at in random.integers(len(content), size=random.integers(1, 4)).tolist():
        changed[at] ^= 1 << int(random.integers(8))
    return bytes(changed)


def cut(content: bytes, random: Random) -> bytes:
    begin, end = sorted(random.integers(len(content) + 1, size=2).tolist())
    return content[:begin] + content[end:]


def truncate(content: bytes, random: Random) -> bytes:
    at = int(random.integers(len(content)))
    return content[: at - at % 512 if random.random() < 0.3 else at]


def insert(content: bytes, random: Random) -> bytes:
    at = int(random.integers(len(content) + 1))
    size = int(random.choice([1, 7, 512, 1024]))
    return content[:at] + (bytes(size) if random.random() < 0.5 else random.bytes(size)) + content[at:]


def duplicate(content: bytes, random: Random) -> bytes:
    begin, end = sorted((random.integers(len(content) // 512 + 1, size=2) * 512).tolist())
    return content[:end] + content[begin:end] + content[end:]


def swap(content: bytes, random: Random) -> bytes:
    """Exchange two neighbouring runs of blocks."""
    a, b, c = sorted((random.integers(len(content) // 512 + 1, size=3) * 512).tolist())
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def number(content: bytes, random: Random) -> bytes:
    """Another size in a member's header, with a matching checksum."""
    headers = [found.start() - 257 for found in re.finditer(b"ustar\x0000", content)]
    at = int(random.choice(headers))
    header = bytearray(content[at : at + 512])
    size = int(header[124:135], 8)
    sizes = [8**11 - 1, 0, size - 1, size - 2, size + 1, int(random.integers(1 << 20))]
    header[124:136] = b"%011o\x00" % max(0, sizes[int(random.integers(len(sizes)))])
    if random.random() < 0.1:
        header[124:136] = random.choice([b"\x80", b"\xff"]) + (1 << 62).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


MUTATIONS: dict[str, Callable[[bytes, Random], bytes]] = {
    change.__name__: change for change in (flip, cut, truncate, insert, duplicate, swap, number)
}


@pytest.fixture(scope="module", params=COMPRESSIONS)
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    folder = tmp_path_factory.mktemp(request.param)
    return write_dataset(folder, count=COUNT, compression=request.param)


def outcome(read: Callable[[], Result]) -> Result | str:
    """The result, or the one-line error; any other exception fails the test."""
    try:
        return read()
    except InputError as error:
        return str(error)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def is_valid(found: Episode) -> bool:
    """Properties that the rest of the program relies on."""
    steps = len(found.actions)
    arrays = [(found.actions, np.float64, (steps, 7)), (found.states, np.float32, (steps, 8))]
    arrays += [(codes, np.uint16, (steps, *codes.shape[1:])) for codes in found.codes.values()]
    return all(array.dtype == dtype and array.shape == shape for array, dtype, shape in arrays)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_shard_gives_equal_data_or_an_error_with_its_location(
    index: DatasetIndex, tmp_path: Path, mutation: str
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(index.url, folder)
    mutated = DatasetIndex.load(str(folder))
    shard = folder / mutated.episodes[0].shard
    whole = shard.read_bytes()
    refused = 0
    for seed in range(60):
        changed = MUTATIONS[mutation](whole, np.random.default_rng(seed))
        shard.write_bytes(changed)
        for i, entry in enumerate(mutated.episodes):
            same = changed[entry.offset : entry.offset + entry.size] == whole[entry.offset :][: entry.size]
            found = outcome(partial(read_episode, mutated, entry))
            if isinstance(found, str):
                refused += 1
                assert not same
                place = f"{folder}: shard {entry.shard}, episode {entry.key}, offset {entry.offset}: "
                assert found.startswith(place)
                assert "\n" not in found
            else:
                assert same
                assert equal(found, episode(i, steps=4 + i))
    assert refused >= 30


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_members_with_matching_checksums_are_not_trusted(
    index: DatasetIndex, tmp_path: Path, mutation: str
) -> None:
    """A shard and its index that were crafted on purpose."""
    content = encode_episode(episode(0, steps=4), index.compression)
    refused = 0
    for seed in range(150):
        changed = MUTATIONS[mutation](content, np.random.default_rng(seed))
        if not changed:
            continue
        (tmp_path / "hostile.tar").write_bytes(changed)
        entry = dataclasses.replace(
            index.episodes[0],
            shard="hostile.tar",
            size=len(changed),
            sha256=hashlib.sha256(changed).hexdigest(),
        )
        hostile = dataclasses.replace(index, episodes=EpisodeTable.of([entry]), url=str(tmp_path))
        found = outcome(partial(read_episode, hostile, entry))
        if isinstance(found, str):
            refused += 1
            assert "shard hostile.tar, episode lift/demo_0, offset 0: " in found
        else:
            assert is_valid(found)
            assert (found.key, found.length) == (entry.key, entry.length)
    assert refused > 20


@pytest.mark.parametrize("mutation", ["flip", "cut", "truncate", "insert"])
@pytest.mark.parametrize("file", ["index.json", "columns"])
def test_a_mutated_index_is_refused_or_equal(
    index: DatasetIndex, tmp_path: Path, mutation: str, file: str
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(index.url, folder)
    path = folder / (file if file == "index.json" else index.episodes.file)
    whole = path.read_bytes()
    refused = 0
    for seed in range(100):
        path.write_bytes(MUTATIONS[mutation](whole, np.random.default_rng(seed)))
        found = outcome(partial(DatasetIndex.load, str(folder)))
        if isinstance(found, str):
            refused += 1
            assert str(folder) in found
        else:
            assert found == index
    assert refused > 60


@pytest.mark.parametrize("file", ["index.json", "columns"])
def test_an_index_of_noise_is_refused(index: DatasetIndex, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(index.url, folder)
    path = folder / (file if file == "index.json" else index.episodes.file)
    for seed in range(50):
        path.write_bytes(np.random.default_rng(seed).bytes(seed * 11))
        with pytest.raises(InputError):
            DatasetIndex.load(str(folder))


GOOD = encode_episode(episode(0))
ARRAY = npy(episode(0).codes["agent"])  # all that is wrong with a hostile member is its header


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = len(ARRAY)) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    form = tarfile.GNU_FORMAT if size >= 8**11 else tarfile.USTAR_FORMAT
    return info.tobuf(form, "ascii", "surrogateescape") + ARRAY + bytes(-len(ARRAY) % 512)


TOP = "lift/demo_0.codes.top.npy"
HOSTILE = {
    "absolute": member(f"/{TOP}"),
    "above": member(f"../{TOP}"),
    "above, within": member(f"lift/../{TOP}"),
    "another episode": member("lift/demo_1.codes.top.npy"),
    "symbolic link": member(TOP, tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": member(TOP, tarfile.LNKTYPE, "lift/demo_0.actions.npy"),
    "character device": member(TOP, tarfile.CHRTYPE),
    "block device": member(TOP, tarfile.BLKTYPE),
    "pipe": member(TOP, tarfile.FIFOTYPE),
    "folder": member(TOP, tarfile.DIRTYPE),
    "long name": member(TOP, tarfile.GNUTYPE_LONGNAME),
    "extension": member(TOP, tarfile.XHDTYPE),
    "global extension": member(TOP, tarfile.XGLTYPE),
    "sparse": member(TOP, tarfile.GNUTYPE_SPARSE),
    "contiguous": member(TOP, tarfile.CONTTYPE),
    "absurd size": member(TOP, size=1 << 60),
    "8 GB": member(TOP, size=8**11 - 1),
    "a byte too few": member(TOP, size=len(ARRAY) - 1),
    "pickle": member("lift/demo_0.pkl"),
    "odd camera": member("lift/demo_0.codes.a\n\x1bb.npy"),
    "twice": member("lift/demo_0.codes.agent.npy"),
    "no name": member(""),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("first", [False, True])
def test_hostile_members_are_refused(name: str, first: bool) -> None:
    found = outcome(lambda: decode_episode(HOSTILE[name] + GOOD if first else GOOD + HOSTILE[name]))
    assert isinstance(found, str)
    assert found.isprintable()


def test_the_same_member_with_a_valid_header_is_accepted() -> None:
    for content in (member(TOP) + GOOD, GOOD + member(TOP)):
        assert set(decode_episode(content).codes) == {"agent", "top", "wrist"}
