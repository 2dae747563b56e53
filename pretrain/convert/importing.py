"""Published weights as a checkpoint that holds weights without moments.

Bytes are copied from file to file: a tensor keeps the dtype it was published in, and only one block of it is
in memory. q/k norms with fewer rows than heads are repeated, as the class that they come from does in its
forward pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from data.errors import InputError
from data.files import folder_written_whole, remove_leftovers, write_whole
from data.storage.bulk_store import Block
from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.chunks import ChunkTable, chunk_name
from pretrain.checkpoint.manifest import (
    MASTER,
    Manifest,
    StoredFile,
    StoredTensor,
    chunk_table_file,
    state_file,
)
from pretrain.checkpoint.tensor_blocks import LazyTensor
from pretrain.convert.source import SourceTensor, open_weights_folder
from pretrain.convert.tensor_files import is_finite, split_into_files, write_tensors
from pretrain.model.action_head import PREFIX as ACTION_HEAD_PREFIX
from pretrain.model.config import ModelConfig

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What was imported; all but the model is stored as metadata of the checkpoint.

    Attributes:
        model: Settings of the network.
        tensors: Their number.
        bytes: Their length.
        dtypes: Number of tensors of each dtype.
        left_out: Number of tensors that were left out, by what they are.
        other_codes: Number of image codes whose ids in the source's vocabulary are not ours.
        action_head_tensors: Number of tensors of the action head among them.
        repeated_norms: Number of q/k norms that are stored with fewer rows than heads and were repeated.
        fingerprint: SHA-256 over the names and the content of all tensors.
    """

    model: ModelConfig
    tensors: int
    bytes: int
    dtypes: dict[str, int]
    left_out: dict[str, int]
    other_codes: int
    action_head_tensors: int
    repeated_norms: int
    fingerprint: str


def import_weights(folder: Path, out: Path, file_bytes: int, progress: Progress) -> ImportSummary:
    """Make the checkpoint folder `out` of a folder of Hugging Face weights.

    Args:
        folder: `config.json` and safetensors files, in either layout (`pretrain.convert.chameleon`).
        out: New folder, or an empty one; it appears in one rename, complete.
        file_bytes: Largest file to write.
        progress: Called with the bytes that are written and those of all tensors.

    Raises:
        InputError: Weights that are not a network of ours (listed, before anything is written), or `out`
            cannot be written; or numbers that are not finite (detected while they are copied).
    """
    source = open_weights_folder(folder)
    digests = {name: hashlib.sha256() for name in source.tensors}
    tensors: list[LazyTensor] = []
    for name, stored in source.tensors.items():
        blocks = partial(_checked_blocks, stored, digests[name])
        tensors.append(LazyTensor(f"{MASTER}/{name}", stored.dtype, stored.shape, blocks))
    size = sum(tensor.bytes for tensor in tensors)
    with output_folder(out, size) as temporary:
        files, stored = _write_files(temporary, split_into_files(tensors, file_bytes), size, progress)
        lines = "".join(f"{name} {digests[name].hexdigest()}\n" for name in sorted(digests))
        summary = ImportSummary(
            source.model,
            len(tensors),
            size,
            dict(Counter(tensor.dtype for tensor in tensors)),
            dict(source.left_out),
            source.other_codes,
            sum(name.startswith(ACTION_HEAD_PREFIX) for name in source.tensors),
            sum(tensor.repeats > 1 for tensor in source.tensors.values()),
            hashlib.sha256(lines.encode()).hexdigest(),
        )
        values = asdict(summary)
        metadata = {"config": {"model": values.pop("model")}, "imported": {"source": folder.name, **values}}
        Manifest(0, 0, metadata, stored, files).write(temporary)
    return summary


def _write_files(
    folder: Path, parts: list[list[LazyTensor]], size: int, progress: Progress
) -> tuple[dict[str, StoredFile], dict[str, StoredTensor]]:
    """Write the files, every tensor as one chunk; return the manifest's entries."""
    files: dict[str, StoredFile] = {}
    tensors: dict[str, StoredTensor] = {}
    chunks: dict[str, tuple[int, Box]] = {}
    written = 0

    def count(length: int) -> None:
        nonlocal written
        written += length
        progress(written, size)

    for number, part in enumerate(parts):
        path = folder / state_file(number, MASTER)
        origins = [tuple(0 for _ in tensor.shape) for tensor in part]
        renamed = [replace(t, name=chunk_name(t.name, o)) for t, o in zip(part, origins, strict=True)]
        write_tensors(path, renamed, count)
        files[path.name] = StoredFile.of_path(path)
        for tensor, origin in zip(part, origins, strict=True):
            tensors[tensor.name] = StoredTensor(tensor.shape, tensor.dtype)
            chunks[tensor.name] = (number, Box(origin, tensor.shape))
    rows = [(number, *chunks[name]) for number, name in enumerate(sorted(chunks))]
    dimensions = max((len(tensor.shape) for tensor in tensors.values()), default=1)
    table = ChunkTable.of(rows, dimensions).encode()
    write_whole(folder / chunk_table_file(), table)
    return files | {chunk_table_file(): StoredFile.of(table)}, tensors


def check_unused(out: Path) -> None:
    """Check that a folder does not exist or is empty.

    Raises:
        InputError: Something else is there.
    """
    try:
        taken = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise InputError(f"out={out}: cannot be looked at ({error})") from error
    if taken:
        raise InputError(f"out={out}: exists and is not empty; name a new folder")


@contextlib.contextmanager
def output_folder(out: Path, size: int) -> Generator[Path, None, None]:
    """Make a folder to fill; at the end of the `with` block it becomes `out`, after an error it is removed.

    Args:
        out: Must not exist or be empty.
        size: Bytes that will be written.

    Raises:
        InputError: Something else is there, or there is no space, or no permission.
    """
    check_unused(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out.parent)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            old = [f"remove {path}" for path in sorted(out.parent.glob(f".tmp-{out.name}-*"))]
            remedy = " and ".join(old) or "make room"
            raise InputError(f"out={out}: needs {size:,} bytes, {free:,} are free there; {remedy}")
        with folder_written_whole(out) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"out={out}: cannot be written ({error})") from error


def _checked_blocks(tensor: SourceTensor, digest: hashlib._Hash) -> Iterator[Block]:
    """The bytes of a tensor, added to `digest`; no training could start with infinite values or NaN."""
    for block in tensor.blocks():
        if not is_finite(block, tensor.dtype):
            raise InputError(
                f"{tensor.file.path}: {tensor.name} holds infinite values or NaN; download it again, or take "
                "weights from before they diverged"
            )
        digest.update(block)
        yield block
