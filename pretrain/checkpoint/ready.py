"""The READY marker of a checkpoint, and the manifest that it names, read and verified.

READY holds the checksum of the manifest and, unless that is `manifest.json`, its name. What is wrong with a
checkpoint's own files is a `DamagedCheckpointError`; storage that does not answer is another `InputError`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from data.errors import InputError
from data.storage.store import Store
from pretrain.run_layout import READY

ATTEMPT = "[0-9a-f]{8}"  # pattern of an attempt's id
DAMAGED = "DAMAGED"  # the former READY of a checkpoint whose files are damaged
SUPERSEDED = "SUPERSEDED"  # and of one whose run has gone back to an earlier checkpoint
_MANIFEST = "manifest"
_READY = re.compile(rf"([0-9a-f]{{64}})(?: {_MANIFEST}-({ATTEMPT})\.json)?")
_MAX_LISTED = 5


class DamagedCheckpointError(InputError):
    """Files of a committed checkpoint are missing, cut short or changed."""


def damage_error(url: str, lines: Sequence[str]) -> DamagedCheckpointError:
    """The error about damaged files of a checkpoint.

    Args:
        url: Of the checkpoint.
        lines: What is wrong with each file.
    """
    listed = "; ".join(lines[:_MAX_LISTED])
    return DamagedCheckpointError(f"{url}: damaged: {listed}; take another checkpoint")


def manifest_file(attempt: str) -> str:
    """Name of an attempt's manifest."""
    return f"{_MANIFEST}-{attempt}.json" if attempt else f"{_MANIFEST}.json"


def ready_content(manifest: bytes, attempt: str) -> bytes:
    """Content of READY: the manifest's checksum, and its name unless that is `manifest.json`."""
    name = f" {manifest_file(attempt)}" if attempt else ""
    return f"{hashlib.sha256(manifest).hexdigest()}{name}".encode()


def committed_attempt(ready: bytes) -> str | None:
    """The attempt that the content of READY commits, empty for imported weights; None: it is damaged."""
    match = _parse(ready)
    return None if match is None else match.group(2) or ""


def read_manifest(store: Store) -> bytes:
    """Read and verify the manifest that READY names.

    Raises:
        DamagedCheckpointError: READY or the manifest is missing, cut short or changed.
        InputError: No committed checkpoint there, or the storage cannot be read.
    """
    if not store.exists(READY):
        remedy = "name a folder step_... below a run's checkpoints/, or what convert import made"
        if store.exists("config.json"):
            remedy = f"import Hugging Face weights by: worldvla convert import source={store.url} out=..."
        if store.exists(SUPERSEDED):
            remedy = f"its run went back behind it; to use it, rename {SUPERSEDED} to {READY}"
        raise InputError(f"{store.url}: no committed checkpoint (no {READY} there); {remedy}")
    ready = store.read(READY)
    match = _parse(ready)
    if match is None:
        raise damage_error(store.url, [f"{READY} has {len(ready)} bytes that are no manifest's checksum"])
    name = manifest_file(match.group(2) or "")
    if not store.exists(name):
        raise damage_error(store.url, [f"{name} is missing"])
    content = store.read(name)
    if hashlib.sha256(content).hexdigest() != match.group(1):
        raise damage_error(store.url, [f"{name}: checksum differs from the one in {READY}"])
    return content


def _parse(ready: bytes) -> re.Match[str] | None:
    return _READY.fullmatch(ready.decode("utf-8", "replace").strip())
