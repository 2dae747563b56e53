"""Where the checkpoints of a run are: a folder, or a prefix of an object store; both are used alike.

In an attempt to save, every rank writes its files, under names with the attempt's id, then rank 0 commits all
of them at once by writing READY. A reader sees the older checkpoint or the whole new one, never a part.
Neither needs a rename, which object stores do not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from data.errors import InputError
from data.storage.bulk_store import Block, BulkStore, open_bulk
from data.storage.store import Store, open_store
from pretrain.checkpoint.ready import (
    DAMAGED,
    SUPERSEDED,
    committed_attempt,
    manifest_file,
    ready_content,
)
from pretrain.config import CheckpointingConfig
from pretrain.run_folder import RunFolder
from pretrain.run_layout import READY, parse_step_name, step_name


class UncertainCommitError(OSError):
    """It is not known whether the storage has committed a checkpoint."""


def step_folder(root: Path, step: int) -> Path:
    """`<root>/step_00000100`."""
    return root / step_name(step)


def checkpoint_location(settings: CheckpointingConfig, folder: RunFolder) -> CheckpointLocation:
    """Location of a run's checkpoints: `checkpointing.url`, or `checkpoints/` of its folder."""
    return CheckpointLocation(settings.url or folder.checkpoints)


def open_checkpoint(url: str | Path, retry_seconds: float | None = None) -> Store:
    """Open the files of one checkpoint.

    Args:
        url: Folder, or URL of an object store with the checkpoint's name at its end.
        retry_seconds: As of `open_store`.

    Raises:
        InputError: The scheme is unknown or its settings are missing.
    """
    return open_store(str(url), retry_seconds)


class CheckpointLocation:
    """All checkpoints of one run.

    Nothing is opened before it is used: an object store's threads do not survive a fork.

    Args:
        url: Folder, or prefix of an object store (`s3://bucket/prefix`).
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url).rstrip("/")
        self._opened: BulkStore | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is an object store, where every listing is a request."""
        return "://" in self.url and not self.url.startswith("file://")

    @property
    def _store(self) -> BulkStore:
        if self._opened is None:
            self._opened = open_bulk(self.url)
        return self._opened

    def checkpoint_url(self, step: int) -> str:
        """Folder or URL of the checkpoint of a step."""
        return f"{self._store.url}/{step_name(step)}"

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending.

        Raises:
            InputError: The location cannot be listed.
        """
        return [step for step, committed in self.scan().items() if committed]

    def scan(self) -> dict[int, bool]:
        """Every step with any file, ascending, and whether it has a committed checkpoint.

        Raises:
            InputError: The location cannot be listed.
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
            UncertainCommitError: Whether it refused is not known: no file of the attempt may be removed.
        """
        folder, ready = step_name(step), ready_content(manifest, attempt)
        self._store.put(f"{folder}/{manifest_file(attempt)}", manifest)
        try:
            self._store.put(f"{folder}/{READY}", ready)
        except OSError as error:
            if not self._was_written(f"{folder}/{READY}", ready, error):
                raise

    def _was_written(self, name: str, content: bytes, error: OSError) -> bool:
        """Whether an object was written although the storage reported an error, or its answer was lost."""
        try:
            store = open_store(self.url)
            return store.exists(name) and store.read(name) == content
        except InputError:
            raise UncertainCommitError(str(error)) from error

    def remove_other_attempts(self, step: int, attempt: str) -> None:
        """Remove what other attempts than the committed one left at a step.

        Raises:
            OSError: The storage refused.
        """
        folder = step_name(step)
        others = [name for name in self._store.names(folder) if name != READY and attempt not in name]
        if others:
            self._store.remove(folder, others)

    def remove_files(self, step: int, names: Sequence[str]) -> None:
        """Remove files of an attempt that failed.

        Raises:
            OSError: The storage refused; `remove_incomplete` removes them at the next start of the run.
        """
        self._store.remove(step_name(step), list(names))

    def set_aside(self, step: int, superseded: bool = False) -> None:
        """Uncommit a checkpoint; its files stay until the step is saved again.

        Args:
            step: Of the checkpoint.
            superseded: It is whole, but the run goes on from an earlier one; else it is damaged.

        Raises:
            OSError: The storage refused.
            InputError: It is no committed checkpoint.
        """
        folder = step_name(step)
        mark = SUPERSEDED if superseded else DAMAGED
        self._store.put(f"{folder}/{mark}", open_store(self.url).read(f"{folder}/{READY}"))
        self._store.remove(folder, [READY])

    def set_aside_as(self, step: int) -> str | None:
        """How a step's checkpoint was set aside: `DAMAGED` or `SUPERSEDED`; None: it was not."""
        names = self._store.names(step_name(step))
        return next((mark for mark in (DAMAGED, SUPERSEDED) if mark in names and READY not in names), None)

    def remove(self, step: int) -> None:
        """Remove a checkpoint, READY first, so that it is uncommitted before any other file goes.

        Raises:
            OSError: The storage refused.
        """
        folder = step_name(step)
        names = self._store.names(folder)
        self._store.remove(folder, [*(n for n in names if n == READY), *(n for n in names if n != READY)])

    def remove_incomplete(self) -> list[str]:
        """Remove the files of interrupted saves (only while no save is running).

        Returns:
            Names of the checkpoints' folders that had such files.

        Raises:
            OSError: The storage refused.
        """
        store, cleaned = open_store(self.url), []
        for folder in self._store.folders():
            if parse_step_name(folder) is None:
                continue
            names = self._store.names(folder)
            if READY in names:
                attempt = committed_attempt(store.read(f"{folder}/{READY}"))
                # Of imported weights, or of a damaged checkpoint, it is not known which files belong to it.
                incomplete = [n for n in names if n != READY and attempt not in n] if attempt else []
            else:
                incomplete = [] if {DAMAGED, SUPERSEDED} & set(names) else names
            if incomplete or not names:
                self._store.remove(folder, incomplete)
                cleaned.append(folder)
        return cleaned
