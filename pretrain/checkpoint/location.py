"""Where the checkpoints of a run lie: a folder, or a prefix of an object store; both are used alike.

A save is an *attempt*: every rank writes its files, under names that hold the attempt's digits, then rank 0
commits all of them at once by writing READY. Whoever looks sees the older checkpoint or the whole new one,
never a part. Neither needs a rename, which object stores do not have.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.errors import InputError
from data.storage.bulk_store import Block, BulkStore, open_bulk
from data.storage.store import Store, open_store
from pretrain.checkpoint.manifest import manifest_file, ready_content
from pretrain.config import CheckpointingConfig
from pretrain.run_folder import RunFolder
from pretrain.run_layout import READY, parse_step_name, step_name

_SET_ASIDE = "DAMAGED"  # what READY said, of a checkpoint that was found to be damaged
_TEMPORARY = ".tmp-"  # of saves and imports before the files' names held the attempt


class UnsureError(OSError):
    """Nobody knows whether the storage has committed a checkpoint."""


def step_folder(root: Path, step: int) -> Path:
    """`<root>/step_00000100`."""
    return root / step_name(step)


def place_of(settings: CheckpointingConfig, folder: RunFolder) -> CheckpointPlace:
    """Where a run keeps its checkpoints: `checkpointing.url`, or `checkpoints/` of its folder."""
    return CheckpointPlace(settings.url or folder.checkpoints)


def open_checkpoint(where: str | Path) -> Store:
    """The files of one checkpoint.

    Args:
        where: Folder, or URL of an object store with the checkpoint's name at its end.

    Raises:
        InputError: The scheme is unknown or its settings are missing.
    """
    return open_store(str(where))


class CheckpointPlace:
    """All checkpoints of one run.

    Nothing is opened before it is used: an object store's threads do not survive a fork.

    Args:
        url: Folder, or prefix of an object store (`s3://bucket/prefix`).
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url).rstrip("/")
        self._opened: BulkStore | None = None

    @property
    def remote(self) -> bool:
        """Whether it is an object store, where every look is a request."""
        return "://" in self.url and not self.url.startswith("file://")

    @property
    def folder(self) -> Path | None:
        """The local folder; None for an object store."""
        return None if self.remote else Path(self._store.url)

    @property
    def _store(self) -> BulkStore:
        if self._opened is None:
            self._opened = open_bulk(self.url)
        return self._opened

    def where(self, step: int) -> str:
        """Folder or URL of the checkpoint of a step."""
        return f"{self._store.url}/{step_name(step)}"

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending.

        Raises:
            InputError: The place cannot be listed.
        """
        return [step for step, whole in self.found().items() if whole]

    def found(self) -> dict[int, bool]:
        """Every step of which something is there, ascending, and whether it is a committed checkpoint.

        Raises:
            InputError: The place cannot be listed.
        """
        store = open_store(self.url)
        steps = {step: name for name in self._store.folders() if (step := parse_step_name(name)) is not None}
        return {step: store.exists(f"{name}/{READY}") for step, name in sorted(steps.items())}

    def latest(self) -> int | None:
        """Step of the newest committed checkpoint, or None."""
        return max(self.steps(), default=None)

    def write(self, step: int, name: str, blocks: Iterable[Block], size: int) -> None:
        """Write one file of an attempt; it is durable when this returns.

        Raises:
            OSError: The storage refused.
        """
        self._store.write_blocks(f"{step_name(step)}/{name}", blocks, size)

    def commit(self, step: int, manifest: bytes, attempt: str) -> None:
        """Make the attempt the checkpoint of its step (rank 0, after every rank has written).

        Raises:
            OSError: The storage refused; an older checkpoint of this step is as it was.
            UnsureError: Whether it refused is not known: nothing of the attempt may be removed.
        """
        folder, ready = step_name(step), ready_content(manifest, attempt)
        self._store.put(f"{folder}/{manifest_file(attempt)}", manifest)
        try:
            self._store.put(f"{folder}/{READY}", ready)
        except OSError as error:
            if not self._holds(f"{folder}/{READY}", ready, error):
                raise

    def _holds(self, name: str, content: bytes, error: OSError) -> bool:
        """Whether an object was written although the storage said no, or its answer was lost."""
        try:
            store = open_store(self.url)
            return store.exists(name) and store.read(name) == content
        except InputError:
            raise UnsureError(str(error)) from error

    def tidy(self, step: int, attempt: str) -> None:
        """Remove what other attempts than the committed one left at a step.

        Raises:
            OSError: The storage refused.
        """
        folder = step_name(step)
        others = [name for name in self._store.names(folder) if name != READY and attempt not in name]
        if others:
            self._store.remove(folder, others)

    def abandon(self, step: int, attempt: str, names: Sequence[str]) -> None:
        """Remove files that this rank wrote in an attempt that failed.

        Raises:
            OSError: The storage refused; `clean` removes them when the run is started again.
        """
        self._store.remove(step_name(step), list(names))

    def set_aside(self, step: int) -> None:
        """Let a damaged checkpoint be none any more; its files stay until the step is saved again.

        Raises:
            OSError: The storage refused.
            InputError: It is no committed checkpoint.
        """
        folder = step_name(step)
        self._store.put(f"{folder}/{_SET_ASIDE}", open_store(self.url).read(f"{folder}/{READY}"))
        self._store.remove(folder, [READY])

    def remove(self, step: int) -> None:
        """Remove a checkpoint, which stops being one before its first file goes.

        Raises:
            OSError: The storage refused.
        """
        folder = step_name(step)
        names = self._store.names(folder)
        self._store.remove(folder, [*(n for n in names if n == READY), *(n for n in names if n != READY)])

    def clean(self) -> list[str]:
        """Remove what saves that were cut short left (before any save, while nobody else saves).

        Returns:
            What it was, by name.

        Raises:
            OSError: The storage refused.
        """
        store, removed = open_store(self.url), []
        for folder in self._store.folders():
            if parse_step_name(folder) is None:
                continue
            names = self._store.names(folder)
            if _SET_ASIDE in names and READY not in names:
                continue
            torn = names
            if READY in names:
                _, _, manifest = store.read(f"{folder}/{READY}").decode("utf-8", "replace").partition(" ")
                attempt = manifest.strip().removeprefix("manifest-").removesuffix(".json")
                torn = [name for name in names if name != READY and attempt not in name] if attempt else []
            if torn or not names:
                self._store.remove(folder, torn)
                removed.append(folder)
        return removed + self._clean_temporary()

    def _clean_temporary(self) -> list[str]:
        if self.folder is None or not self.folder.is_dir():
            return []
        found = sorted(self.folder.glob(f"{_TEMPORARY}*"))
        for path in found:
            shutil.rmtree(path)
        return [path.name for path in found]
