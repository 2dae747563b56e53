"""Marks of `info.json`: another storage, columns of language, depth, unknown fields; names in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.config import SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.sources.registry import read_demonstrations
from tests.support.lerobot_layout import CAMERAS, recorded, write_lerobot


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def read(folder: Path) -> list[Demonstration]:
    return list(read_demonstrations(SourceConfig(str(folder))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_lerobot(tmp_path / "set", "v2.1", [recorded(4, 0), recorded(3, 1)], "image")


def test_another_storage_is_refused_by_its_name(folder: Path) -> None:
    changed(folder, lambda info: info.update(storage_format="lance"))
    with pytest.raises(InputError, match=r"info\.json: storage_format is lance, expected tables \(Parquet\)"):
        read(folder)
    changed(folder, lambda info: info.update(storage_format="parquet"))
    assert len(read(folder)) == 2


def test_what_is_not_followed_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(folder)
    assert not caplog.text
    language = {"dtype": "language", "shape": None, "names": None}

    def add(info: dict[str, Any]) -> None:
        info["features"] |= {"language_persistent": language, "language_events": language}
        info |= {"frame_layout": "planes", "tools": []}

    changed(folder, add)
    assert [each.instruction for each in read(folder)] == ["lift the cube"] * 2
    assert "columns that are not read: language_persistent, language_events; the instruction" in caplog.text
    assert "fields that are not known here and not followed: frame_layout; check" in caplog.text


@pytest.mark.parametrize("mark", ["video.is_depth_map", "is_depth_map"])
def test_depth_is_no_camera(folder: Path, mark: str) -> None:
    def depth(info: dict[str, Any]) -> None:
        info["features"][CAMERAS[1]]["info"] = {mark: True}
        info["features"][CAMERAS[0]]["info"] = {mark: False}

    changed(folder, depth)
    assert [list(each.frames) for each in read(folder)] == [["agent"]] * 2


@pytest.mark.parametrize(
    "names",
    [
        {CAMERAS[1]: "observation.images.image2"},
        {CAMERAS[0]: "image", CAMERAS[1]: "wrist_image", "action": "actions", "observation.state": "state"},
    ],
)
def test_libero_on_the_hub_is_read_in_all_its_namings(folder: Path, names: dict[str, str]) -> None:
    before = read(folder)

    def rename(info: dict[str, Any]) -> None:
        info["features"] = {names.get(name, name): value for name, value in info["features"].items()}

    changed(folder, rename)
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), path)
    for one, two in zip(read(folder), before, strict=True):
        assert np.array_equal(one.actions, two.actions)
        assert np.array_equal(one.states, two.states)
        assert all(np.array_equal(one.frames[camera], two.frames[camera]) for camera in ("agent", "wrist"))
