"""Lengths and checksums of the files of a checkpoint, and its chunk table, compared with its manifest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from data.errors import InputError, StorageError
from data.storage.store import Store
from pretrain.checkpoint.chunks import ChunkTable
from pretrain.checkpoint.manifest import Manifest, StoredFile, chunk_table_file
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


def find_table_damage(store: Store, manifest: Manifest, known: Collection[str] = ()) -> list[str]:
    """Describe why the chunk table does not fit the manifest, in at most one line.

    Args:
        store: The checkpoint.
        manifest: Of it.
        known: From `find_damage`; a table whose file is named there is not read.

    Raises:
        StorageError: The storage does not answer.
    """
    name = chunk_table_file(manifest.attempt)
    if any(line.startswith(name) for line in known):
        return []
    if name not in manifest.files:
        return [f"the manifest does not name {name}"]
    try:
        problem = manifest.table_inconsistency(ChunkTable.decode(name, store.read(name)))
    except StorageError:
        raise
    except InputError as error:
        return [str(error)]
    return [] if problem is None else [f"{name}: its table of chunks is wrong ({problem})"]
