"""LeRobot episodes of several tasks are cut where the rows' task changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.config import SourceConfig
from data.errors import InputError
from data.sources.files.source_files import LocalFiles
from data.sources.lerobot.tasks import read_tasks
from data.sources.registry import open_source
from tests.support.lerobot_layout import CAMERAS, recorded, write_lerobot
from tests.support.rlds_layout import episode, write_rlds


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_episode_is_cut_where_its_task_changes(tmp_path: Path, version: str) -> None:
    written = [recorded(7, 0), recorded(5, 1)]
    folder = write_lerobot(tmp_path / "set", version, written, "image")
    rows = [[1, 1, 1, 0, 0, 1, 1][: written[0].length], [0] * written[1].length]
    for path in sorted((folder / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        indices = rows.pop(0) if version == "v2.1" else rows[0] + rows[1]
        place = table.column_names.index("task_index")
        pq.write_table(table.set_column(place, "task_index", [indices]), path)
    texts = {"task_index": [0, 1], "task": ["Open it", "Close it"]}
    if version == "v2.1":
        lines = [json.dumps({"task_index": i, "task": text}) for i, text in enumerate(texts["task"])]
        (folder / "meta/tasks.jsonl").write_text("\n".join(lines))
        first = {"episode_index": 0, "tasks": texts["task"], "length": written[0].length}
        second = {"episode_index": 1, "tasks": ["Open it"], "length": written[1].length}
        (folder / "meta/episodes.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    else:
        pq.write_table(pa.table(texts), folder / "meta/tasks.parquet")
        path = next((folder / "meta/episodes").rglob("*.parquet"))
        table = pq.read_table(path)
        tasks = [texts["task"], ["Open it"]]
        pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", [tasks]), path)
    source = open_source(SourceConfig(str(folder), several_instructions="cut"))
    references = list(source.checked(source.references()))
    assert [(r.key, r.instruction, r.length) for r in references] == [
        ("episode_000000_steps_0-3", "close it", 3),
        ("episode_000000_steps_3-5", "open it", 2),
        ("episode_000000_steps_5-7", "close it", 2),
        ("episode_000001", "open it", written[1].length),
    ]
    found = [source.read(reference) for reference in references]
    assert np.array_equal(np.concatenate([each.actions for each in found[:3]]), written[0].action)
    for camera, name in zip(("agent", "wrist"), CAMERAS, strict=True):
        frames = np.concatenate([each.frames[camera] for each in found[:3]])
        assert np.array_equal(frames, written[0].frames[name])
    assert np.array_equal(found[3].states, written[1].state)


def test_tasks_that_are_missing_are_faults(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", "v2.1", [recorded(3, 0)], "image")
    line = {"episode_index": 0, "tasks": ["Open it", "Close it"], "length": 3}
    (folder / "meta/episodes.jsonl").write_text(json.dumps(line))
    (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 5, "task": "Open it"}))
    config = SourceConfig(str(folder), several_instructions="cut")
    (reference,) = open_source(config).references()
    assert "no task 0 in meta/tasks" in reference.fault
    (folder / "meta/tasks.jsonl").unlink()
    (reference,) = open_source(config).references()
    assert "tasks.jsonl: cannot be read (No such file or directory); expected the tasks" in reference.fault


def test_the_index_of_a_pandas_table_names_tasks(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    path = tmp_path / "meta" / "tasks.parquet"
    pq.write_table(pa.table({"task_index": [1, 0], "__index_level_0__": ["b", "a"]}), path)
    assert read_tasks(LocalFiles(tmp_path)) == {0: "a", 1: "b"}
    pq.write_table(pa.table({"task_index": [1]}), path)
    with pytest.raises(InputError, match="no column task, it has task_index"):
        read_tasks(LocalFiles(tmp_path))


def test_other_formats_are_not_cut(tmp_path: Path) -> None:
    folder = write_rlds(tmp_path / "set", [episode(3, 0)], files=1)
    with pytest.raises(InputError, match=r"several_instructions=cut: is for LeRobot only, .* is rlds"):
        open_source(SourceConfig(str(folder), several_instructions="cut"))
