"""The demonstrations that a preparation left out, each with its reason, in a file beside the index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from data.json_record import JsonRecord
from data.storage.store import Store

LEFT_OUT_FILE = "left_out.json"
NOT_SUCCESSFUL = "did not end in success when it was replayed"
_MAX_LISTED = 10_000
_MAX_REASON = 500  # characters


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was left out of a data set.

    Attributes:
        count: Number of demonstrations.
        reasons: Key -> why, of the first 10,000 of them.
    """

    count: int
    reasons: Mapping[str, str]


def write_left_out(store: Store, fingerprint: str, reasons: Mapping[str, str]) -> None:
    """Write the file, or nothing where nothing was left out and there is none of an earlier preparation.

    Args:
        store: Where the data set is written.
        fingerprint: Of its index.
        reasons: Key of each demonstration -> why it was left out.
    """
    if not reasons and not store.exists(LEFT_OUT_FILE):
        return
    listed = [
        {"key": key, "reason": reason[:_MAX_REASON]} for key, reason in list(reasons.items())[:_MAX_LISTED]
    ]
    content = {"fingerprint": fingerprint, "count": len(reasons), "demonstrations": listed}
    store.write(LEFT_OUT_FILE, (json.dumps(content, indent=1) + "\n").encode())


def read_left_out(store: Store, fingerprint: str) -> LeftOut | None:
    """What was left out of a data set; None where there is no such file, or it is another data set's.

    Raises:
        InputError: The file is damaged.
    """
    if not store.exists(LEFT_OUT_FILE):
        return None
    record = JsonRecord.parse(store.read(LEFT_OUT_FILE), f"{store.url}/{LEFT_OUT_FILE}")
    if record.text("fingerprint") != fingerprint:
        return None
    listed = record.records("demonstrations")
    return LeftOut(record.integer("count"), {item.text("key"): item.text("reason") for item in listed})
