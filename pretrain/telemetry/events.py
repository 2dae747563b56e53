"""History of a run from its first start on: one JSON object a line in `events.jsonl`.

`metrics.jsonl` follows the training's steps and is cut when the run goes back to a checkpoint. This file only
grows: starts, skipped steps, checkpoints that could not be written, failures and restarts, each with the time
of day. Trainer and supervisor both append to it; each line is one write, so that their lines do not mix.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)
_MEASUREMENTS = ("validation",)  # numbers of a step, which belong to metrics.jsonl alone


class EventLog:
    """Appends events to a file.

    Args:
        path: `events.jsonl` of a run folder; created with the first event.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: deque[bytes] = deque()  # lines that the disk has refused
        self._refused = False

    def write(self, event: Mapping[str, Any]) -> None:
        """Append `{"time": ..., **event}`; the time is UTC, to the millisecond.

        Args:
            event: Details, with the name under `event`. Measurements are left out.

        Raises:
            OSError: The disk refuses; no part of the line stays.
        """
        if event["event"] not in _MEASUREMENTS:
            self._append(_line(event))

    def write_or_keep(self, event: Mapping[str, Any]) -> None:
        """`write`, but a disk that refuses is logged once, and the line kept for `write_kept`."""
        if event["event"] not in _MEASUREMENTS:
            self._kept.append(_line(event))
            self.write_kept()

    def write_kept(self) -> None:
        """Append the lines that the disk refused before, if there are any, as far as it takes them now."""
        while self._kept:
            try:
                self._append(self._kept[0])
            except OSError as error:
                if not self._refused:
                    _LOG.warning("%s: cannot be written (%s); it follows when it can", self._path, error)
                self._refused = True
                return
            self._kept.popleft()
            self._refused = False

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(descriptor, line)
            if written < len(line):  # the disk is full; the next line must not follow on this part
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def _line(event: Mapping[str, Any]) -> bytes:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return (json.dumps({"time": time, **event}) + "\n").encode()
