"""Finished episodes on disk, one JSON line each, so that an interrupted evaluation can continue."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.files import write_whole
from eval.rollout.episode import EpisodeResult
from eval.rollout.trace import trace_of

_STORED = tuple(field.name for field in fields(EpisodeResult) if field.name not in ("frames", "trace"))

Key = tuple[int, int]
"""Task and initial state."""


class Journal:
    """The episodes of one policy on one suite, in a file named by the digest of what they depend on.

    Args:
        folder: Folder of the file.
        identity: Everything that the outcome of an episode depends on: policy, suite, horizon, versions.
        resume: Continue with the episodes in the file; else start anew.
        earlier: Folder of an earlier evaluation; its episodes of the same identity are taken over, with their
            videos.

    Raises:
        InputError: The file cannot be read, or a line in its middle is damaged.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], resume: bool = True, earlier: Path | None = None
    ) -> None:
        self.path = folder / f"episodes-{identity_digest(identity)}.jsonl"
        if not resume:
            self.path.unlink(missing_ok=True)
        self._results: dict[Key, EpisodeResult] = {}
        if resume and earlier is not None:
            self._results = _taken_over(earlier / self.path.name, folder)
        if self.path.is_file():
            _remove_unfinished_line(self.path)
            for key, result in _read(self.path).items():
                if result.error is None or key not in self._results:
                    self._results[key] = result

    def completed(self) -> dict[Key, EpisodeResult]:
        """Results without an error; episodes with an error are to be run again."""
        return {key: result for key, result in self._results.items() if result.error is None}

    def append(self, result: EpisodeResult) -> None:
        """Write one result; it is on disk when this returns.

        Raises:
            InputError: It cannot be written.
        """
        values = {name: value for name, value in asdict(result).items() if name in _STORED}
        try:
            self._write(json.dumps(values).encode() + b"\n")
        except OSError as error:
            raise InputError(
                f"{self.path}: a finished episode cannot be stored ({error.strerror}); free space there, or "
                "make it writable: the same command continues after the episodes stored before"
            ) from error
        self._results[result.task, result.initial_state] = result

    def _write(self, line: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def identity_digest(identity: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits for everything that the outcome of an episode depends on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _taken_over(earlier: Path, folder: Path) -> dict[Key, EpisodeResult]:
    """Results in the file of another folder, whose evaluation may still run; their files are copied."""
    if not earlier.is_file():
        return {}
    results = _read(earlier)
    for result in results.values():
        if result.video is not None and not (folder / result.video).exists():
            for file in (Path(result.video), trace_of(Path(result.video))):
                _copy(earlier.parent / file, folder / file)
    return results


def _copy(video: Path, copy: Path) -> None:
    try:
        write_whole(copy, video.read_bytes())
    except FileNotFoundError:
        return  # removed since, or written by a version without it
    except OSError as error:
        raise InputError(
            f"{copy}: an episode's file cannot be copied here ({error.strerror}); free space there"
        ) from error


def _remove_unfinished_line(path: Path) -> None:
    """Remove the last line if the process was killed while it wrote it."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


def _read(path: Path) -> dict[Key, EpisodeResult]:
    """Results in the complete lines of a file."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    results: dict[Key, EpisodeResult] = {}
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            result = EpisodeResult(**json.loads(line))
            if result.video is not None and Path(result.video).name != result.video:
                raise ValueError(f"its video {result.video} is not in this folder")
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is no episode ({error}); delete the file, or give resume=false"
            ) from error
        results[result.task, result.initial_state] = result
    return results
