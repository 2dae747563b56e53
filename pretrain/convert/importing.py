"""Published weights into a checkpoint of ours that holds weights alone.

Bytes are copied from file to file: a tensor keeps the dtype it was published in, and no more than a block
of it is in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from data.errors import InputError
from data.files import sync_folder
from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.manifest import (
    MASTER,
    Manifest,
    StoredFile,
    StoredTensor,
    pieces_file,
    state_file,
    write_durably,
)
from pretrain.checkpoint.pieces import PieceTable
from pretrain.checkpoint.storage import piece_key
from pretrain.checkpoint.verification import describe, describe_file
from pretrain.convert.source import open_source
from pretrain.convert.tensor_files import Content, TensorFile, finite, shards, write_tensors
from pretrain.model.config import ModelConfig

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Imported:
    """What was imported.

    Attributes:
        model: Settings of the network.
        tensors: Their number.
        bytes: Their length.
        dtypes: Number of tensors of each dtype.
        left_out: Number of tensors that were left out, by what they are.
        other_codes: Image codes whose ids in the source's vocabulary are not ours.
        fingerprint: SHA-256 over the names and the content of all tensors.
    """

    model: ModelConfig
    tensors: int
    bytes: int
    dtypes: dict[str, int]
    left_out: dict[str, int]
    other_codes: int
    fingerprint: str


def import_weights(folder: Path, out: Path, shard_bytes: int, progress: Progress) -> Imported:
    """Make the checkpoint folder `out` of a folder of Hugging Face weights.

    Args:
        folder: `config.json` and safetensors files.
        out: New folder, or an empty one; it appears in one rename, complete.
        shard_bytes: Largest file to write.
        progress: Told the bytes that are written and all that there are.

    Raises:
        InputError: Weights that are not a network of ours (listed, before anything is written), or `out`
            cannot be written; or numbers that are not finite (found while they are copied).
    """
    source = open_source(folder)
    digests = {name: hashlib.sha256() for name in source.tensors}
    contents: list[Content] = []
    for name, file in source.tensors.items():
        entry, blocks = file.entries[name], partial(_checked, file, name, digests[name])
        contents.append(Content(f"{MASTER}/{name}", entry.dtype, entry.shape, blocks))
    with new_folder(out, sum(content.bytes for content in contents)) as temporary:
        files, tensors = _write(temporary, shards(contents, shard_bytes), progress)
        lines = "".join(f"{name} {digests[name].hexdigest()}\n" for name in sorted(digests))
        done = Imported(
            source.model,
            len(contents),
            sum(content.bytes for content in contents),
            dict(Counter(content.dtype for content in contents)),
            dict(source.left_out),
            source.other_codes,
            hashlib.sha256(lines.encode()).hexdigest(),
        )
        facts = asdict(done)
        metadata = {"config": {"model": facts.pop("model")}, "imported": {"source": folder.name, **facts}}
        Manifest(0, 0, metadata, tensors, files).write(temporary)
    return done


def _write(
    folder: Path, parts: list[list[Content]], progress: Progress
) -> tuple[dict[str, StoredFile], dict[str, StoredTensor]]:
    """Write the files, every tensor as one piece; what the manifest has to say of them."""
    total = sum(content.bytes for part in parts for content in part)
    files: dict[str, StoredFile] = {}
    tensors: dict[str, StoredTensor] = {}
    boxes: dict[str, tuple[int, Box]] = {}
    written = 0

    def count(length: int) -> None:
        nonlocal written
        written += length
        progress(written, total)

    for number, part in enumerate(parts):
        path = folder / state_file(number, MASTER)
        origins = [tuple(0 for _ in content.shape) for content in part]
        keyed = [replace(c, name=piece_key(c.name, o)) for c, o in zip(part, origins, strict=True)]
        write_tensors(path, keyed, count)
        files[path.name] = describe_file(path)
        for content, origin in zip(part, origins, strict=True):
            tensors[content.name] = StoredTensor(content.shape, content.dtype)
            boxes[content.name] = (number, Box(origin, content.shape))
    rows = [(number, *boxes[name]) for number, name in enumerate(sorted(boxes))]
    pieces = PieceTable.of(rows, max((len(tensor.shape) for tensor in tensors.values()), default=1)).encode()
    write_durably(folder / pieces_file(), pieces)
    return files | {pieces_file(): describe(pieces)}, tensors


def check_new(out: Path) -> None:
    """Check that nothing stands in the way of a new folder.

    Raises:
        InputError: There is something else than an empty folder.
    """
    try:
        taken = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise InputError(f"out={out}: cannot be looked at ({error})") from error
    if taken:
        raise InputError(f"out={out}: exists and is not empty; name a new folder")


@contextlib.contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """A folder to fill beside `out`, which takes its name at the end, or goes away after an error.

    Args:
        out: Must not exist or be empty.
        size: Bytes that will be written.

    Raises:
        InputError: There is something, no room, or no permission.
    """
    check_new(out)
    temporary = out.with_name(f".tmp-{out.name}-{uuid.uuid4().hex[:8]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            old = [f"remove {path}" for path in sorted(out.parent.glob(f".tmp-{out.name}-*"))]
            way = " and ".join(old) or "make room"
            raise InputError(f"out={out}: needs {size:,} bytes, {free:,} are free there; {way}")
        temporary.mkdir()
        yield temporary
        sync_folder(temporary)
        temporary.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise InputError(f"out={out}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checked(file: TensorFile, name: str, digest: hashlib._Hash) -> Iterator[bytes]:
    """The bytes of a tensor, counted into `digest`; a training could not begin with what is not finite."""
    dtype = file.entries[name].dtype
    for block in file.blocks(name):
        if not finite(block, dtype):
            raise InputError(
                f"{file.path}: {name} holds infinite values or NaN; download it again, or take weights from "
                "before they diverged"
            )
        digest.update(block)
        yield block
