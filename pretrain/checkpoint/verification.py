"""Lengths and checksums of the files of a checkpoint, compared with its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from data.errors import InputError, StorageError
from data.storage.store import Store
from pretrain.checkpoint.manifest import StoredFile
from pretrain.checkpoint.tensor_stream import read_verified


def find_damage(
    store: Store,
    files: Mapping[str, StoredFile],
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Verify files; describe what is wrong with each damaged one, a line each.

    Args:
        store: The checkpoint.
        files: Those to read.
        threads: Files read at a time.
        progress: Called with the bytes of each file that was read.

    Raises:
        StorageError: The storage does not answer: nothing is known of the files.
    """

    def verify(item: tuple[str, StoredFile]) -> str | None:
        try:
            read_verified(store, *item, {})
        except StorageError:
            raise
        except InputError as error:
            return str(error)
        finally:
            if progress is not None:
                progress(item[1].bytes)
        return None

    with ThreadPoolExecutor(max(1, min(threads, len(files)))) as pool:
        return [line for line in pool.map(verify, sorted(files.items())) if line is not None]
