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
from eval.rollout.episode import EpisodeResult

_STORED = tuple(field.name for field in fields(EpisodeResult) if field.name != "frames")

Key = tuple[int, int]
"""Task and initial state."""


class Journal:
    """The episodes of one policy on one suite, in a file named by the digest of what they depend on.

    Args:
        folder: Folder of the file.
        identity: Everything that the outcome of an episode depends on: policy, suite, horizon, versions.
        resume: Continue with the episodes in the file; else start anew.

    Raises:
        InputError: The file cannot be read, or a line in its middle is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], resume: bool = True) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        self.path = folder / f"episodes-{digest}.jsonl"
        if not resume:
            self.path.unlink(missing_ok=True)
        self._results = _read(self.path) if self.path.is_file() else {}

    def completed(self) -> dict[Key, EpisodeResult]:
        """Results without an error; episodes with an error are to be run again."""
        return {key: result for key, result in self._results.items() if result.error is None}

    def append(self, result: EpisodeResult) -> None:
        """Write one result; it is on disk when this returns."""
        values = {name: value for name, value in asdict(result).items() if name in _STORED}
        with self.path.open("ab") as file:
            file.write(json.dumps(values).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._results[result.task, result.initial_state] = result


def _read(path: Path) -> dict[Key, EpisodeResult]:
    """Results in a file; a truncated last line is removed."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    results: dict[Key, EpisodeResult] = {}
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            result = EpisodeResult(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is no episode ({error}); delete the file, or give resume=false"
            ) from error
        results[result.task, result.initial_state] = result
    return results
