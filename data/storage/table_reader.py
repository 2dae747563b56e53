"""The episodes that an `index.json` names, read once in a process while somebody uses them."""

from __future__ import annotations

import hashlib
from weakref import WeakValueDictionary

from data.errors import InputError
from data.json_record import JsonRecord
from data.storage.episode_entry import Task
from data.storage.episode_table import EpisodeTable
from data.storage.mapped_arrays import map_object
from data.storage.store import Store

_in_use: WeakValueDictionary[tuple[str, str], EpisodeTable] = WeakValueDictionary()
"""By URL and checksum of `index.json`, which has that of the columns: the content cannot be another one."""


def read_table(store: Store, content: bytes, record: JsonRecord) -> EpisodeTable:
    """Read the columns of the episodes, unless this process has them.

    Args:
        store: Where they lie.
        content: `index.json`.
        record: The same, parsed.

    Raises:
        InputError: They are missing, or not those that the index means.
    """
    key = store.url, hashlib.sha256(content).hexdigest()
    table = _in_use.get(key)
    if table is None:
        table = _in_use[key] = _read(store, record)
    return table


def _read(store: Store, record: JsonRecord) -> EpisodeTable:
    part = record.record("episodes")
    name = part.text("file")
    content = map_object(store, name)
    where = f"{store.url}/{name}"
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != part.text("sha256"):
        raise InputError(
            f"{where}: sha256 {sha256[:12]}, expected {part.text('sha256')[:12]}; copy the file or prepare "
            "the data set again"
        )
    tasks = [
        Task(suite=task.text("suite"), task=task.text("task"), instruction=task.text("instruction"))
        for task in record.records("tasks")
    ]
    table = EpisodeTable.parse(content, where, record.texts("shards"), tasks)
    table.sha256 = sha256
    return table
