"""Shards and index: byte layout, stock readers, and damage of every kind."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from data.errors import InputError
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.storage.object_store import ObjectStore
from data.storage.shards import check_key, decode_episode, encode_episode
from data.storage.store import FileStore, open_store
from data.storage.store_errors import VARIABLES, describe_error
from tests.support.shards_case import episode, equal, write_dataset


def test_shards_are_read_as_they_were_written(tmp_path: Path) -> None:
    index = write_dataset(tmp_path)
    assert [entry.length for entry in index.episodes] == [4, 5, 6]
    for i, entry in enumerate(index.episodes):
        assert equal(read_episode(index, entry), episode(i, steps=4 + i))
    assert [entry.key for entry in index.split("val_ind")] == ["lift/demo_0"]


def test_same_episodes_give_the_same_bytes_and_another_shard_another_name(tmp_path: Path) -> None:
    one, two = write_dataset(tmp_path / "a"), write_dataset(tmp_path / "b")
    assert one == two
    assert one.fingerprint == two.fingerprint
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    more = write_dataset(tmp_path / "a", count=4)
    assert more.fingerprint != one.fingerprint
    assert (tmp_path / "a" / one.episodes[0].shard).exists()
    assert more.episodes[0].shard != one.episodes[0].shard


def test_shards_are_bounded(tmp_path: Path) -> None:
    index = write_dataset(tmp_path, limit=10_000)
    assert len({entry.shard for entry in index.episodes}) == 3
    assert all(entry.offset == 0 for entry in index.episodes)


def test_a_stock_webdataset_reads_the_shards(tmp_path: Path) -> None:
    index = write_dataset(tmp_path)
    shard = tmp_path / index.episodes[0].shard
    pipeline: Any = webdataset.WebDataset(str(shard), shardshuffle=False)  # pyright: ignore[reportAttributeAccessIssue]
    samples = list(pipeline.decode())
    assert [sample["__key__"] for sample in samples] == [entry.key for entry in index.episodes]
    for i, sample in enumerate(samples):
        truth = episode(i, steps=4 + i)
        assert np.array_equal(sample["codes.agent.npy"], truth.codes["agent"])
        assert np.array_equal(sample["actions.npy"], truth.actions)
        assert sample["json"]["instruction"] == "lift the cube"


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-4000], "cut short"),
        (lambda content: content[:512], "cut short"),
        (lambda content: flip(content, len(content) - 3000), "sha256"),
        (lambda content: b"", "cut short"),
        (None, "cannot be read"),
    ],
    ids=["truncated", "truncated after a header", "flipped", "empty", "missing"],
)
def test_damage_names_shard_episode_and_offset(
    tmp_path: Path, damage: Callable[[bytes], bytes] | None, reason: str
) -> None:
    index = write_dataset(tmp_path)
    entry = index.episodes[-1]
    path = tmp_path / entry.shard
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as error:
        read_episode(index, entry)
    message = str(error.value)
    assert reason in message
    assert f"shard {entry.shard}, episode lift/demo_2, offset {entry.offset}" in message


def test_an_episode_that_differs_from_the_index_is_refused(tmp_path: Path) -> None:
    index = write_dataset(tmp_path)
    with pytest.raises(InputError, match="the index says 99 steps"):
        read_episode(index, dataclasses.replace(index.episodes[0], length=99))
    small = dataclasses.replace(index, image=dataclasses.replace(index.image, codebook_size=2))
    with pytest.raises(InputError, match="the index says below 2"):
        read_episode(small, index.episodes[0])
    other = dataclasses.replace(index, cameras=("agent",))
    with pytest.raises(InputError, match="cameras"):
        read_episode(other, index.episodes[0])


@pytest.mark.parametrize("name", ["../other/shard.tar", "/etc/passwd", "a/../b", "", ".hidden", "a\x00b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="plain relative name"):
        FileStore(tmp_path).read_range(name, 0, 1)


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a.b", "a b", "x" * 151, "a/" + "b" * 41])
def test_keys_that_cannot_name_members_are_refused(key: str) -> None:
    with pytest.raises(InputError, match="rename the file"):
        check_key(key)


def test_the_longest_key_fits_into_an_archive() -> None:
    long = dataclasses.replace(episode(0), key="f" * 109 + "/" + "d" * 40)
    assert equal(decode_episode(encode_episode(long)), long)


def foreign_member(info: tarfile.TarInfo, payload: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(payload))
    return file.getvalue()[: 512 + len(payload) + -len(payload) % 512]


def test_links_foreign_names_and_pickles_are_refused() -> None:
    good = encode_episode(episode(0))
    link = tarfile.TarInfo("lift/demo_0.codes.top.npy")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(InputError, match="no plain file"):
        decode_episode(good + foreign_member(link, b""))
    for name in ("lift/demo_1.actions.npy", "../lift/demo_0.json", "lift/demo_0.extra.pkl"):
        info = tarfile.TarInfo(name)
        info.size = 3
        with pytest.raises(InputError, match="member"):
            decode_episode(good + foreign_member(info, b"abc"))
    with pytest.raises(InputError, match="occurs twice"):
        decode_episode(good + good)
    codes = {"top": episode(0).codes["agent"]}
    for key, reason in (("lift/demo_0", None), ("lift/demo_1", "does not belong")):
        other = encode_episode(dataclasses.replace(episode(0), key=key, codes=codes))
        together = good + other[: other.index(f"{key}.actions.npy".encode())]
        if reason is None:
            assert set(decode_episode(together).codes) == {"agent", "wrist", "top"}
        else:
            with pytest.raises(InputError, match=reason):
                decode_episode(together)
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    info = tarfile.TarInfo("lift/demo_0.codes.top.npy")
    info.size = len(pickled.getvalue())
    with pytest.raises(InputError, match="array"):
        decode_episode(good + foreign_member(info, pickled.getvalue()))


@pytest.mark.parametrize("shape", [b"(5 0, 7)", b"(5, 0, %d)" % 10**30, b"(5, 0, %d)" % 10**50])
def test_shapes_that_no_array_can_have_are_refused(shape: bytes) -> None:
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': %b, }" % shape
    payload = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    info = tarfile.TarInfo("lift/demo_0.codes.top.npy")
    info.size = len(payload)
    with pytest.raises(InputError, match="array"):
        decode_episode(encode_episode(episode(0)) + foreign_member(info, payload))


GOOD = encode_episode(episode(0))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=24))
def test_overwritten_bytes_never_crash_the_reader(position: int, noise: bytes) -> None:
    content = (GOOD[:position] + noise + GOOD[position + len(noise) :])[: len(GOOD)]
    try:
        decoded = decode_episode(content)
    except InputError:
        return
    assert decoded.actions.shape == (5, 7)  # the noise fell on values


def test_object_stores_behave_like_folders(tmp_path: Path) -> None:
    remote = ObjectStore("memory:///", MemoryStore())
    remote.write("part/shard-0.tar", b"0123456789")
    assert remote.read("part/shard-0.tar") == b"0123456789"
    assert remote.read_range("part/shard-0.tar", 2, 3) == b"234"
    assert remote.exists("part/shard-0.tar")
    assert not remote.exists("part/shard-1.tar")
    with pytest.raises(InputError, match="cut short"):
        remote.read_range("part/shard-0.tar", 8, 3)
    with pytest.raises(InputError, match="cannot be read"):
        remote.read("part/shard-1.tar")


def test_urls(tmp_path: Path) -> None:
    spaced = tmp_path / "a folder"
    open_store(spaced.as_uri()).write("x", b"1")
    assert open_store(str(spaced)).read("x") == b"1"
    with pytest.raises(InputError, match="cannot open this object store"):
        open_store("foo://bucket/prefix")
    with pytest.raises(InputError, match="host"):
        open_store("file://relative/path")
    for broken in ("s3://[bucket/prefix", "file://[host/path"):
        with pytest.raises(InputError, match="cannot open this object store"):
            open_store(broken)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_missing_credentials_are_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    if scheme == "az":
        with pytest.raises(InputError, match=r"Account must be specified.*AZURE_STORAGE_ACCOUNT_NAME and"):
            open_store("az://bucket")
    asked = "Error performing GET http://169.254.169.254/token: error sending request"
    profiles = (
        ' or write keys into ~/.aws/credentials (eval "$(aws configure export-credentials --format env)" '
        "sets the variables of single sign-on or of a role)"
    )
    profiles = profiles if scheme == "s3" else ""
    assert describe_error(f"{scheme}://bucket", GenericError(f"{asked}\n\nDebug source: ...")) == (
        f"no credentials: set {VARIABLES[scheme]}{profiles}, or run on a machine that the cloud gives a "
        f"role; {asked}"
    )
    assert describe_error(f"{scheme}://bucket", GenericError("status code: 503")) == "status code: 503"


def test_a_folder_that_cannot_be_looked_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        DatasetIndex.load(str(tmp_path / ("x" * 300)))


def test_an_interrupted_write_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        FileStore(tmp_path).write("x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_refused_and_stays_unchanged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="choose a writable place"):
        open_store(str(tmp_path / "file")).write("x", b"1")
    assert (tmp_path / "file").read_text() == "precious"
    store = open_store(str(tmp_path))
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        store.write("taken", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_an_index_with_text_that_cannot_be_encoded_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "index.json"
    text = path.read_text()
    assert '"instruction": "lift the cube"' in text
    path.write_text(text.replace('"instruction": "lift the cube"', '"instruction": "lift \\ud83d"'))
    with pytest.raises(InputError, match=r"instruction is 'lift \\ud83d', expected a text that can"):
        DatasetIndex.load(str(tmp_path))
