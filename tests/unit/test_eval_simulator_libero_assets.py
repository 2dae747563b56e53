"""LIBERO's assets, unpacked once for each user."""

from __future__ import annotations

import multiprocessing
import os
import tarfile
from pathlib import Path

import pytest

from data.errors import InputError
from data.files import folder_written_whole
from eval.simulator.libero.assets import configure, find_assets
from tests.unit.test_eval_demonstrations_collect import archive_of_assets, assets_folder


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


def test_an_empty_variable_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = assets_folder(tmp_path / "installed")
    monkeypatch.setattr("eval.simulator.libero.assets.assets_package", lambda: installed)
    monkeypatch.setattr("eval.simulator.libero.assets.check_packages", lambda: None)
    monkeypatch.setenv("LIBERO_ASSETS", "")
    assert find_assets() == installed


def test_what_is_no_assets_folder_nor_archive_is_one_line_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "notes.txt"
    text.write_text("no archive")
    for path, message in (
        (tmp_path, "not LIBERO's assets, it has no folder scenes; run: "),
        (text, "cannot unpack this archive (file could not be opened successfully: "),
    ):
        monkeypatch.setenv("LIBERO_ASSETS", str(path))
        with pytest.raises(InputError) as raised:
            find_assets()
        assert str(raised.value).startswith(f"LIBERO_ASSETS={path}: {message}")
        assert "\n" not in str(raised.value)


def test_an_archive_without_assets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = tmp_path / "other.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(__file__, "assets/README")
    monkeypatch.setenv("LIBERO_ASSETS", str(archive))
    with pytest.raises(InputError, match=rf"^LIBERO_ASSETS={archive}: .*: not LIBERO's assets, it has no"):
        find_assets()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no folder assets"),
        ("just words", "names no folder assets"),
        ("assets: [", r"cannot be read \(while parsing"),
        ("assets: a\nbench: b", "names no folder bddl_files"),
        (
            "{assets: a, bddl_files: /none, benchmark_root: b, init_states: c}",
            "names bddl_files=/none, no folder",
        ),
    ],
)
def test_a_configuration_of_liberos_that_cannot_work_is_named(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    monkeypatch.setattr("eval.simulator.libero.assets.package_folder", lambda: tmp_path)
    with pytest.raises(
        InputError, match=rf"^{path}: LIBERO's configuration {message}.*unset LIBERO_CONFIG_PATH"
    ) as raised:
        configure(tmp_path)
    assert "\n" not in str(raised.value)
