"""LIBERO's assets, unpacked once for each user."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from data.files import folder_written_whole
from eval.simulator.libero.assets import find_assets
from tests.unit.test_eval_demonstrations_collect import archive_of_assets


def test_what_a_killed_process_had_unpacked_is_removed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBERO_ASSETS", str(archive_of_assets(tmp_path)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = find_assets()
    unfinished = multiprocessing.get_context("fork").Process(target=unpack_and_die, args=(whole.parent,))
    unfinished.start()
    unfinished.join()
    cache = tmp_path / "cache/worldvla"
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr("data.files._cleaned", set())  # as of another process
    assert find_assets() == whole
    assert list(cache.iterdir()) == [whole.parent]


def unpack_and_die(folder: Path) -> None:
    with folder_written_whole(folder) as temporary:
        (temporary / "mesh").write_text("half")
        os.kill(os.getpid(), 9)
