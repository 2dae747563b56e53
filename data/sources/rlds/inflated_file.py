"""A file compressed with gzip or zlib, read as its content, a block at a time."""

from __future__ import annotations

import zlib
from typing import BinaryIO

_BLOCK = 1 << 20
_ANY_FORMAT = 32 + zlib.MAX_WBITS  # of RFC 1950 (zlib) and RFC 1952 (gzip), told apart by its head


class InflatedFile:
    """The content of a compressed file. Reading holds what is asked for and one block; nothing is kept.

    Going forward decompresses what is between, going back begins anew.

    Args:
        file: The compressed file; it stays the caller's to close.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._restart()

    def tell(self) -> int:
        """Bytes of the content before the next one that is read."""
        return self._position

    def seek(self, offset: int) -> None:
        """Go to an offset in the content, or to its end where that is before it.

        Raises:
            OSError, zlib.error: As `read`.
        """
        if offset < self._position:
            self._restart()
        while self._position < offset and self._block(min(_BLOCK, offset - self._position)):
            pass

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer where the content ends, or the file does.

        Raises:
            OSError: The file cannot be read.
            zlib.error: It is damaged.
        """
        content = bytearray()
        while len(content) < size and (block := self._block(min(_BLOCK, size - len(content)))):
            content += block
        return bytes(content)

    def _restart(self) -> None:
        self._file.seek(0)
        self._position = 0
        self._stream = zlib.decompressobj(_ANY_FORMAT)
        self._waiting = b""  # compressed bytes that were read and not yet used

    def _block(self, most: int) -> bytes:
        """Up to `most` bytes of the content, at least one; empty at its end."""
        while True:
            if self._stream.eof:  # another part may follow, as gzip allows; zeros are padding
                self._waiting = self._stream.unused_data.lstrip(b"\0")
                while not self._waiting:
                    if not (more := self._file.read(_BLOCK)):
                        return b""
                    self._waiting = more.lstrip(b"\0")
                self._stream = zlib.decompressobj(_ANY_FORMAT)
            given = self._waiting or self._file.read(_BLOCK)
            block = self._stream.decompress(given, most)
            self._waiting = self._stream.unconsumed_tail
            self._position += len(block)
            if block or not given:
                return block
