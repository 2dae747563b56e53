"""Weights of a checkpoint in an object store, copied to a folder of its run for readers of folders."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from data.errors import InputError
from data.files import folder_written_whole
from data.storage.retries import RETRY_SECONDS
from data.storage.store import Store
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import EMA, MASTER, Manifest
from pretrain.checkpoint.ready import damage_error, manifest_file
from pretrain.checkpoint_metadata import settings_section
from pretrain.run_layout import READY, STEP_PATTERN, RunLayout, step_name

_BLOCK = 1 << 24
_MAX_FETCHED = 2  # checkpoints


def local_checkpoint(url: str, run: Path | None = None) -> Path:
    """Return a checkpoint as a folder of its run: itself, or its weights in `fetched/step_...` there.

    Tokenizers and action ranges are in the run's folder, where an evaluation looks for them. Moments are not
    fetched, an average of the weights is. Every file is verified while it is copied; a folder that was
    fetched before from the same checkpoint is used again. The checkpoint fetched before it stays, older ones
    are removed.

    Args:
        url: Folder, or URL of one checkpoint in an object store.
        run: Folder of its run; None: the one that the checkpoint's settings name, and a folder as it is.

    Raises:
        InputError: No committed checkpoint there, a damaged file (named), a run whose folder is not here, or
            one that cannot be written to.
    """
    if "://" not in url and (run is None or RunLayout.of_checkpoint(Path(url)).path == run.resolve()):
        return Path(url)
    store = open_checkpoint(url, None if run is None else RETRY_SECONDS)  # given: beside a training
    manifest = Manifest.read(store)
    run = run or _run_folder(url, manifest)
    folder, ready = RunLayout(run).fetched / step_name(manifest.step), store.read(READY)
    if _content(folder / READY) == ready:
        return folder
    try:
        folder.parent.mkdir(exist_ok=True)
        _make_room(folder)
        with folder_written_whole(folder) as temporary:
            _fetch_weights(store, manifest, temporary)
            (temporary / READY).write_bytes(ready)
    except OSError as error:
        if _content(folder / READY) != ready:  # else another process has fetched it meanwhile
            raise InputError(
                f"{folder}: cannot be written ({error.strerror}); free space there, or make it writable"
            ) from error
    return folder


def _run_folder(url: str, manifest: Manifest) -> Path:
    settings = settings_section(manifest.metadata, "run")
    run = Path(str(settings.get("dir", ""))) / str(settings.get("name", ""))
    if not settings or not RunLayout(run).config.is_file():
        raise InputError(
            f"{url}: is of the run {run}, which is not here (no config.yaml, no tokenizers); call it "
            "where that folder is, or copy the folder without its checkpoints"
        )
    return run


def _fetch_weights(store: Store, manifest: Manifest, folder: Path) -> None:
    for name, stored in sorted(manifest.files_of(MASTER, EMA).items()):
        if store.size(name) != stored.bytes:
            raise damage_error(store.url, [f"{name} has {store.size(name)} bytes, expected {stored.bytes}"])
        digest = hashlib.sha256()
        with (folder / name).open("wb") as file:
            for offset in range(0, stored.bytes, _BLOCK):
                block = store.read_range(name, offset, min(_BLOCK, stored.bytes - offset))
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != stored.sha256:
            raise damage_error(store.url, [f"{name} differs from its checksum"])
    name = manifest_file(manifest.attempt)
    (folder / name).write_bytes(store.read(name))


def _make_room(folder: Path) -> None:
    """Remove an older checkpoint of the same step, and all but the newest of the others."""
    if folder.exists():
        shutil.rmtree(folder)
    others = sorted(folder.parent.glob(STEP_PATTERN), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[_MAX_FETCHED - 1 :]:
        shutil.rmtree(path)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
