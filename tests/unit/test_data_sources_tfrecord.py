"""Records of TFRecord files, also of compressed ones, which are not held in memory."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.sources.rlds.inflated_file import InflatedFile
from data.sources.rlds.tfrecord import RecordReader, masked_checksum, record_offsets
from tests.support.rlds_layout import NAME, record, write_rlds
from tests.unit.test_data_sources_rlds import episode, read

CONTENTS = [
    np.random.default_rng(seed).bytes(length) for seed, length in enumerate((700_000, 0, 5, 2_500_000))
]
RECORDS = b"".join(map(record, CONTENTS))
Compress = Callable[[bytes], bytes]


def gzip_parts(content: bytes) -> bytes:
    """As `gzip -c` of two files one after the other, with padding."""
    half = len(content) // 2
    return gzip.compress(content[:half]) + bytes(512) + gzip.compress(content[half:]) + bytes(2_000_000)


COMPRESSIONS = pytest.mark.parametrize(
    "compress",
    [
        bytes,
        gzip.compress,
        gzip_parts,
        zlib.compress,
        lambda b: zlib.compress(b, 9),
        lambda b: zlib.compress(b, 1),
    ],
    ids=["plain", "gzip", "gzip parts", "zlib", "zlib best", "zlib fast"],
)


@COMPRESSIONS
def test_records_are_found_and_read_in_any_order(compress: Compress, tmp_path: Path) -> None:
    path, other = tmp_path / "records", tmp_path / "other"
    path.write_bytes(compress(RECORDS))
    other.write_bytes(compress(record(b"other")))
    found = list(record_offsets(path))
    assert [content for _, content in found] == CONTENTS
    reader = RecordReader()
    for number in (0, 1, 3, 2, 3, 0):
        assert reader.read(path, found[number][0]) == CONTENTS[number]
        if number == 2:
            assert reader.read(other, 0) == b"other"
    with pytest.raises(InputError, match="cut short in the record at offset"):
        reader.read(path, len(RECORDS) + 1)
    assert reader.read(path, found[1][0]) == b""


@COMPRESSIONS
def test_an_empty_file_has_no_records(compress: Compress, tmp_path: Path) -> None:
    (tmp_path / "records").write_bytes(compress(b""))
    assert list(record_offsets(tmp_path / "records")) == []


@COMPRESSIONS
def test_a_record_with_damaged_content_costs_that_record_only(compress: Compress, tmp_path: Path) -> None:
    damaged = bytearray(RECORDS)
    damaged[100] ^= 1
    (tmp_path / "records").write_bytes(compress(bytes(damaged)))
    found = [content for _, content in record_offsets(tmp_path / "records")]
    assert found[1:] == CONTENTS[1:]
    assert "content of the record at offset 0 does not have its checksum" in str(found[0])


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda b: b[:100_000], "cut short in the record at offset 0"),
        (lambda b: b[:100_000] + bytes(50) + b[100_050:], "records: its compressed content is damaged"),
        (lambda b: b[:2] + bytes(40), "records: (its compressed content is damaged|cut short in the record)"),
    ],
)
def test_damage_of_a_compressed_file_is_named(
    compress: Compress, damage: Compress, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "records"
    path.write_bytes(damage(compress(RECORDS[:600_000])))
    reader = RecordReader()
    for _ in range(2):
        with pytest.raises(InputError, match=reason):
            list(record_offsets(path))
        with pytest.raises(InputError, match=rf"{reason}|content of the record at offset 0"):
            reader.read(path, 0)
    path.write_bytes(compress(RECORDS))
    assert reader.read(path, 0) == CONTENTS[0], "an error is not remembered"


def head(length: int) -> bytes:
    encoded = struct.pack("<Q", length)
    return encoded + struct.pack("<I", masked_checksum(encoded))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(200_000_000), "length of the record at offset 0 does not have its checksum"),
        (head(1 << 31) + bytes(200_000_000), "record at offset 0 has 2147483648 bytes, an Example at most"),
        (head(1 << 60), "record at offset 0 has 1152921504606846976 bytes"),
    ],
)
def test_a_small_file_of_much_content_does_not_exhaust_the_memory(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "records"
    path.write_bytes(gzip.compress(content))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=reason):
            list(record_offsets(path))
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_content_that_is_passed_over_is_not_held(tmp_path: Path) -> None:
    file = InflatedFile(io.BytesIO(zlib.compress(bytes(100_000_000) + b"end")))
    tracemalloc.start()
    try:
        file.seek(100_000_000)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert (file.read(10), file.tell()) == (b"end", 100_000_003)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_compressed_data_sets_are_read_as_plain_ones(compress: Compress, suffix: str, tmp_path: Path) -> None:
    folder = write_rlds(tmp_path / "set", [episode(4, 0), episode(6, 1), episode(3, 2)], files=2)
    plain = read(folder)
    for path in sorted(folder.glob(f"{NAME}-train.tfrecord-*")):
        content = path.read_bytes()
        path.unlink()
        path.with_name(path.name + suffix).write_bytes(compress(content))
    found = read(folder)
    assert len(found) == 3
    for each, expected in zip(found, plain, strict=True):
        assert each.key == expected.key
        assert np.array_equal(each.frames["agent"], expected.frames["agent"])
        assert np.array_equal(each.actions, expected.actions)
