"""Lengths and checksums of the files of a checkpoint, compared with what its manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.errors import InputError
from data.storage.store import Store
from pretrain.checkpoint.manifest import StoredFile
from pretrain.checkpoint.tensor_stream import read_whole

_BLOCK = 1 << 22


def describe(content: bytes) -> StoredFile:
    """Length and checksum of a small file."""
    return StoredFile(len(content), hashlib.sha256(content).hexdigest())


def describe_file(path: Path) -> StoredFile:
    """Length and checksum of a file as it lies on the disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return StoredFile(path.stat().st_size, digest.hexdigest())


def damaged(
    store: Store,
    files: Mapping[str, StoredFile],
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """What is wrong with each of `files`, one line a file; empty when all are as they were written.

    Args:
        store: The checkpoint.
        files: Those to read.
        threads: Files read at a time.
        progress: Told the bytes of each file that was read.
    """

    def look(item: tuple[str, StoredFile]) -> str | None:
        try:
            read_whole(store, *item, {})
        except InputError as error:
            return str(error)
        finally:
            if progress is not None:
                progress(item[1].bytes)
        return None

    with ThreadPoolExecutor(max(1, min(threads, len(files)))) as pool:
        return [line for line in pool.map(look, sorted(files.items())) if line is not None]
