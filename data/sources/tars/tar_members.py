"""Members of tar files that others wrote, one header after the other, and nothing else.

`tarfile` reads the headers (ustar, GNU's long names, POSIX.1-2001's extended ones). It takes a damaged
header, or the end of the file, for the end of the archive, and `webdataset` leaves out what follows without a
word; here both are errors that name file, member and offset.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from data.errors import InputError
from data.unicode_text import encodable

_BLOCK = tarfile.BLOCKSIZE
_MAX_EXTENSION, _MAX_EXTENSIONS = 1 << 20, 4  # bytes of an extended header, and how many a member has
_SIZE, _TYPE = slice(124, 136), slice(156, 157)  # fields of a header
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_GZIP = b"\x1f\x8b"


class DamagedTarError(InputError):
    """A tar file cannot be read further.

    Attributes:
        member: Name of the member that is cut short or refused, or of the last one before the damage.
    """

    def __init__(self, message: str, member: str = "") -> None:
        super().__init__(message)
        self.member = member


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file of an archive.

    Attributes:
        name: Its path, relative.
        header, begin: Offsets of its (first) header and of its content.
        size: Bytes of its content.
    """

    name: str
    header: int
    begin: int
    size: int

    @property
    def end(self) -> int:
        """Offset of the next header."""
        return self.begin + self.size + -self.size % _BLOCK


def read_members(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Member]:
    """Yield the plain files of an archive, whose contents are whole; folders are passed over.

    Args:
        path: The archive, not compressed.
        begin: Offset of the first header.
        end: Offset of a header at which to stop; None: the end of the archive.

    Raises:
        DamagedTarError: A header is damaged, a member or the end of the archive is missing, a member is a
            link, a device, or leaves the folder of the archive; or the file cannot be read, or is compressed.
    """
    try:
        with path.open("rb") as file:
            yield from _members(file, path, begin, end)
    except OSError as error:
        raise DamagedTarError(
            f"{path}: cannot be read ({error.strerror}); copy the data set again"
        ) from error


def _members(file: BinaryIO, path: Path, begin: int, end: int | None) -> Iterator[Member]:
    length = os.fstat(file.fileno()).st_size
    if file.read(len(_GZIP)) == _GZIP:
        raise DamagedTarError(
            f"{path}: is compressed with gzip, expected a plain tar file; expand it with gunzip"
        )
    last = ""
    while begin != end:
        file.seek(begin)
        try:
            headers = _headers(file)
            if not headers:
                return
            info = tarfile.TarFile(fileobj=io.BytesIO(headers), encoding="utf-8").next()
        except (tarfile.TarError, EOFError, ValueError) as error:
            after = f" after member {last}" if last else ""
            raise DamagedTarError(
                f"{path}: no whole header of a tar file{after} at offset {begin} of {length} ({error}); copy "
                "the file again",
                last,
            ) from error
        assert info is not None  # else an error of `tarfile`
        name = _checked(info, path, begin)
        member = Member(name, begin, begin + len(headers), info.size if info.isreg() else 0)
        if member.begin + member.size > length:
            raise DamagedTarError(
                f"{path}: cut short in member {name} at offset {begin}: {member.size} bytes from "
                f"{member.begin}, the file has {length}; copy the file again",
                name,
            )
        if info.isreg():
            last = name
            yield member
        begin = member.end


def _headers(file: BinaryIO) -> bytes:
    """The next header, after those that extend it; empty: the mark of the archive's end.

    Raises:
        EOFError, ValueError: The file ends, or it is none that `tarfile` should see: those that lie about
            their size would take memory or time without end.
    """
    headers = b""
    for _ in range(_MAX_EXTENSIONS + 1):
        head = file.read(_BLOCK)
        if len(head) < _BLOCK:
            raise EOFError("the file ends, without the mark of the archive's end")
        if not headers and not any(head):
            return b""
        headers += head
        if (kind := head[_TYPE]) not in _EXTENSIONS:
            if kind == tarfile.GNUTYPE_SPARSE:
                raise ValueError("a sparse file")
            return headers
        size = int(head[_SIZE].strip(b" \0"), 8)
        content = file.read(size + -size % _BLOCK) if 0 <= size <= _MAX_EXTENSION else b""
        if len(content) < size or b"GNU.sparse" in content:
            raise ValueError(f"an extended header of {size} bytes, or of a sparse file")
        headers += content
    raise ValueError(f"more than {_MAX_EXTENSIONS} extended headers")


def _checked(info: tarfile.TarInfo, path: Path, offset: int) -> str:
    """Name of a member, relative; refused where it is no plain file or folder, or leaves the archive."""
    name = encodable(info.name).removeprefix("./") or "."
    what = ""
    if not (info.type in _FILES or info.isdir()):
        what = "is a link or a device"
    elif info.size < 0:
        what = "has a size below zero"
    elif name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or "\0" in name:
        what = "leads out of its folder"
    if what:
        raise DamagedTarError(
            f"{path}: member {name[:200]!r} at offset {offset} {what}, expected plain files; make the "
            "archive again without it",
            name,
        )
    return name
