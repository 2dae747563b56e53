"""zstd within the members of shards: smaller, read by stock webdataset, never a bomb."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import zstandard
from webdataset.autodecode import Continue

from data.config import PrepareConfig
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.storage.episode_cache import EpisodeCache
from data.storage.episode_reader import read_episode
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex
from data.storage.shards import ShardWriter, decode_episode, encode_episode, expand_episode
from data.storage.store import open_store
from tests.support.libero_layout import demonstration, write_file
from tests.support.shards_case import episode, equal, write_dataset

SHARDS: Any = webdataset.WebDataset  # pyright: ignore[reportAttributeAccessIssue]


def expand(key: str, data: bytes) -> Any:
    """The code for a stock reader in docs/storage.md."""
    return Continue(key[:-4], zstandard.decompress(data)) if key.endswith(".zst") else None


def test_episodes_are_read_as_they_were_written(tmp_path: Path) -> None:
    index = write_dataset(tmp_path / "zstd", compression="zstd")
    plain = write_dataset(tmp_path / "none")
    for i, (entry, other) in enumerate(zip(index.episodes, plain.episodes, strict=True)):
        assert equal(read_episode(index, entry), episode(i, steps=4 + i))
        content = (tmp_path / "zstd" / entry.shard).read_bytes()[entry.offset : entry.offset + entry.size]
        whole = (tmp_path / "none" / other.shard).read_bytes()[other.offset : other.offset + other.size]
        assert expand_episode(content, len(whole)) == whole
    assert index.fingerprint != plain.fingerprint


def test_the_index_names_the_compression(tmp_path: Path) -> None:
    write_dataset(tmp_path / "zstd", compression="zstd")
    write_dataset(tmp_path / "none")
    found = [json.loads((tmp_path / name / "index.json").read_text()) for name in ("zstd", "none")]
    assert [(each["schema"], each.get("compression")) for each in found] == [(4, "zstd"), (4, "none")]
    found[0]["compression"] = "lzma"
    (tmp_path / "zstd" / "index.json").write_text(json.dumps(found[0]))
    with pytest.raises(InputError, match="compression is 'lzma', expected one of none, zstd"):
        DatasetIndex.load(str(tmp_path / "zstd"))


def test_a_stock_webdataset_reads_the_shards(tmp_path: Path) -> None:
    index = write_dataset(tmp_path, compression="zstd")
    url = str(tmp_path / index.episodes[0].shard)
    samples = list(SHARDS(url, shardshuffle=False).decode(pre=[expand]))
    assert [sample["__key__"] for sample in samples] == [entry.key for entry in index.episodes]
    for i, sample in enumerate(samples):
        truth = episode(i, steps=4 + i)
        assert np.array_equal(sample["codes.agent.npy.zst"], truth.codes["agent"])
        assert np.array_equal(sample["codes.wrist.npy.zst"], truth.codes["wrist"])
        assert np.array_equal(sample["actions.npy.zst"], truth.actions)
        assert sample["json"]["instruction"] == "lift the cube"


def test_the_cache_stores_decompressed_episodes(tmp_path: Path) -> None:
    write_dataset(tmp_path / "shards", compression="zstd")
    index = DatasetIndex.load(str(tmp_path / "shards"), cache=EpisodeCache(tmp_path / "cache", 10**9))
    entry = index.episodes[1]
    read_episode(index, entry)
    (path,) = (tmp_path / "cache").glob("??/*")
    assert episode(1, steps=5).codes["wrist"][3].tobytes() in path.read_bytes()
    (tmp_path / "shards" / entry.shard).unlink()
    assert equal(read_episode(index, entry), episode(1, steps=5))


class Tokenizer:
    """Codes that compress well."""

    pixels, rows, columns, codebook_size, sha256 = 64, 8, 8, 256, "a" * 64

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return np.full((len(frames), 8, 8), 7, np.uint16)


def test_prepare_compresses_with_the_setting(tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(seed=i, steps=40) for i in range(4)])
    sizes: list[int] = []
    episodes: list[list[Any]] = []
    for compression in ("none", "zstd", "zstd"):
        out = tmp_path / f"out{len(sizes)}"
        config = PrepareConfig(source=str(tmp_path / "demos"), out=str(out), compression=compression)
        index = prepare(Preparer(config, Tokenizer()))
        assert index == DatasetIndex.load(str(out))
        sizes.append(sum(path.stat().st_size for path in out.glob("*.tar")))
        episodes.append([read_episode(index, entry) for entry in index.episodes])
    assert sizes[1] < 0.6 * sizes[0]
    assert all(equal(one, other) for one, other in zip(*episodes[:2], strict=True))
    assert [p.read_bytes() for p in sorted((tmp_path / "out1").glob("*.*"))] == [
        p.read_bytes() for p in sorted((tmp_path / "out2").glob("*.*"))
    ]
    with pytest.raises(InputError, match="compression=gzip: expected one of none, zstd"):
        ShardWriter(open_store(str(tmp_path / "x")), None, compression="gzip")  # type: ignore[arg-type]


def member(name: str, payload: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    return info.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % 512)


def with_agent(payload: bytes) -> bytes:
    """An episode with another member for its agent frames."""
    content = encode_episode(episode(0), "zstd")
    first = content.index(b"lift/demo_0.codes.wrist")
    return member("lift/demo_0.codes.agent.npy.zst", payload) + content[first:]


def without_size(payload: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(payload)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (zstandard.compress(bytes(10**8)), "would expand to 100000000 bytes, expected at most"),
        (without_size(bytes(10**6)), "would expand to -1 bytes"),
        (b"not a frame", "is no zstd frame"),
        (b"", "is no zstd frame"),
        (zstandard.compress(bytes(2000))[:-2], "is no zstd frame"),
        (zstandard.compress(b"no array"), "array has no npy header"),
    ],
    ids=["bomb", "unknown size", "garbage", "empty", "cut", "no array"],
)
def test_members_with_wrong_sizes_or_content_are_refused(tmp_path: Path, payload: bytes, reason: str) -> None:
    content = with_agent(payload)
    index = write_dataset(tmp_path, compression="zstd")
    (tmp_path / "hostile.tar").write_bytes(content)
    entry = dataclasses.replace(
        index.episodes[0],
        shard="hostile.tar",
        offset=0,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        length=5,
    )
    hostile = dataclasses.replace(index, episodes=EpisodeTable.of([entry]))
    with pytest.raises(InputError, match=rf"shard hostile.tar, episode lift/demo_0, offset 0: .*{reason}"):
        read_episode(hostile, entry)


def test_all_members_together_are_bounded() -> None:
    good = encode_episode(episode(0), "zstd")
    payloads = 0
    with tarfile.open(fileobj=io.BytesIO(encode_episode(episode(0)) + bytes(1024))) as archive:
        payloads = sum(info.size for info in archive)
    assert equal(decode_episode(expand_episode(good, payloads)), episode(0))
    with pytest.raises(InputError, match="would expand to"):
        expand_episode(good, payloads // 2)


def test_a_compressed_member_in_a_plain_data_set_is_refused() -> None:
    with pytest.raises(InputError, match="members"):
        decode_episode(encode_episode(episode(0), "zstd"))
