"""Members of an episode: headers and payloads of a plain ustar archive (POSIX 1003.1-1988), and nothing else.

Headers are written by `tarfile`. They are read here: every episode has four members or more, their content is
untrusted, and `tarfile` takes four times as long and accepts more (GNU's sizes, signed sums).

    bytes     0  100   124   136   148       156   157       257    265       345     500
    field     name     size        checksum  type            magic            prefix
"""

from __future__ import annotations

import re
import struct
import tarfile
from collections.abc import Iterator

from data.errors import InputError

_BLOCK = tarfile.BLOCKSIZE
_HEADER = struct.Struct("100s24x12s12x8s1s100x8s80x155s12x")  # the fields above
_OCTAL = re.compile(rb" *([0-7]+)[\0 ]+")
_CHECKSUM = slice(148, 156)  # counts as spaces in itself
_SPACES = 8 * ord(" ")
_REGULAR_FILE, _MAGIC = b"0", b"ustar\x0000"


def write_member(name: str, payload: bytes | memoryview) -> list[bytes | memoryview]:
    """Encode header, payload and padding of a plain file without a time, owner or group."""
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    return [info.tobuf(tarfile.USTAR_FORMAT), payload, bytes(-len(payload) % _BLOCK)]


def read_members(content: bytes | memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield name and payload (a view, not a copy) of every member.

    Raises:
        InputError: A header is broken, or not of a plain file that fits into `content`. Names are not
            checked.
    """
    view, offset = memoryview(content), 0
    while offset < len(content):
        name, size, kind = _read_header(bytes(view[offset : offset + _BLOCK]), offset)
        offset += _BLOCK
        if kind != _REGULAR_FILE or size > len(content) - offset:
            raise InputError(f"member {name[:200]!r} is no plain file that fits into its episode")
        yield name, view[offset : offset + size]
        offset += size + -size % _BLOCK


def _read_header(header: bytes, offset: int) -> tuple[str, int, bytes]:
    """Name, size and type of a header at byte `offset` of the episode."""
    if len(header) != _BLOCK:
        raise _broken(offset, "truncated header")
    if not any(header):
        raise _broken(offset, "end of file header")
    last, size, checksum, kind, magic, folders = _HEADER.unpack(header)
    if _number(checksum, offset) != sum(header) - sum(header[_CHECKSUM]) + _SPACES:
        raise _broken(offset, "bad checksum")
    if magic != _MAGIC:
        raise _broken(offset, "no ustar header")
    name, folders = last.partition(b"\0")[0], folders.partition(b"\0")[0]
    try:
        text = (folders + b"/" + name if folders else name).decode("ascii")
    except UnicodeDecodeError as error:
        raise _broken(offset, str(error)) from error
    return text, _number(size, offset), kind


def _number(field: bytes, offset: int) -> int:
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise _broken(offset, "invalid header")
    return int(match[1], 8)


def _broken(offset: int, why: str) -> InputError:
    return InputError(f"broken member header {offset} bytes into the episode ({why})")
