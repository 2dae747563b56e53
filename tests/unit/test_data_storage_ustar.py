"""Members of episodes: read as stock tar readers do, without what these should not accept."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.storage.ustar import read_members, write_member

PAYLOAD = bytes(range(200))
LONG = "/".join(["f" * 50, "e" * 50, "d" * 40 + ".codes.agent.npy"])
Field = tuple[int, bytes]

NAME, SIZE, CHECKSUM, TYPE, MAGIC, PREFIX = 0, 124, 148, 156, 257, 345


def header(*changes: Field, signed: bool = False) -> bytes:
    """A member's header with other fields; its checksum matches unless it is one of them."""
    content = bytearray(write_member("lift/demo_0.json", PAYLOAD)[0])
    for at, field in changes:
        content[at : at + len(field)] = field
    if all(at != CHECKSUM for at, _ in changes):
        content[CHECKSUM : CHECKSUM + 8] = b" " * 8
        total = sum(content) - signed * 256 * sum(byte >= 128 for byte in content)
        content[CHECKSUM : CHECKSUM + 8] = b"%06o\0 " % total
    return bytes(content)


def read(first: bytes) -> list[tuple[str, bytes]]:
    content = first + PAYLOAD + bytes(-len(PAYLOAD) % 512)
    return [(name, bytes(payload)) for name, payload in read_members(content)]


def test_members_are_read_as_they_were_written() -> None:
    members = [("a.json", b""), ("lift/demo_0.json", PAYLOAD), (LONG, bytes(512)), ("z", bytes(513))]
    content = b"".join(part for name, payload in members for part in write_member(name, payload))
    assert [(name, bytes(payload)) for name, payload in read_members(content)] == members


@pytest.mark.parametrize(
    "field", [b"00000000310 ", b"        310\0", b"310\0\0\0\0\0\0\0\0\0", b"  310       "]
)
def test_sizes_in_any_octal_form_are_read(field: bytes) -> None:
    assert read(header((SIZE, field))) == [("lift/demo_0.json", PAYLOAD)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([(CHECKSUM, b"000001\0 ")], "bad checksum"),
        ([(CHECKSUM, b"        ")], "invalid header"),
        ([(CHECKSUM, b"+12345\0 ")], "invalid header"),
        ([(MAGIC, b"ustar  \0")], "no ustar header"),
        ([(MAGIC, bytes(8))], "no ustar header"),
        ([(SIZE, b"000000_0310\0")], "invalid header"),
        ([(SIZE, b"-0000000310\0")], "invalid header"),
        ([(SIZE, b"0000000\x000310")], "invalid header"),
        ([(SIZE, b"00000000318\0")], "invalid header"),
        ([(SIZE, b" " * 12)], "invalid header"),
        ([(SIZE, b"\x80" + (200).to_bytes(11, "big"))], "invalid header"),
        ([(SIZE, b"\xff" * 12)], "invalid header"),
        ([(SIZE, b"777777777777")], "invalid header"),
        ([(SIZE, b"77777777777\0")], "no plain file that fits"),
        ([(SIZE, b"00000001001\0")], "no plain file that fits"),
        ([(TYPE, b"\0")], "no plain file"),
        ([(TYPE, b"2")], "no plain file"),
        ([(TYPE, b"5")], "no plain file"),
        ([(NAME, b"\xc3\xa9")], "ascii"),
        ([(PREFIX, b"\xff")], "ascii"),
    ],
)  # fmt: skip
def test_headers_that_are_no_plain_files_are_refused(changes: list[Field], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        read(header(*changes))
    assert str(error.value).isprintable()


def test_sums_of_signed_bytes_are_refused() -> None:
    with pytest.raises(InputError, match="bad checksum"):
        read(header((329, b"\xff"), signed=True))


@pytest.mark.parametrize(("content", "reason"), [(bytes(512), "end of file"), (header()[:511], "truncated")])
def test_blocks_that_are_no_headers_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=rf"broken member header 1024 bytes into the episode \({reason}"):
        list(read_members(b"".join(write_member("a", PAYLOAD)) + content))


FIELDS = st.sampled_from([NAME, SIZE, TYPE, MAGIC, PREFIX])
NOISE = st.one_of(
    st.binary(min_size=1, max_size=12), st.text("01237 \0", min_size=1, max_size=12).map(str.encode)
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(FIELDS, NOISE), max_size=2))
def test_accepted_members_are_those_that_tarfile_reads(changes: list[Field]) -> None:
    changed = header(*changes)
    try:
        found = read(changed)
    except InputError:
        return
    seen = tarfile.TarInfo.frombuf(changed, "ascii", "replace")  # of owner and group: we do not read them
    assert seen.name.isascii()
    assert seen.type == tarfile.REGTYPE
    assert (found[0][0], len(found[0][1])) == (seen.name, seen.size)
