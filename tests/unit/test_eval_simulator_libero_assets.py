"""LIBERO's assets, unpacked once for each user."""

from __future__ import annotations

import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from data.files import folder_written_whole
from eval.simulator.libero import assets as libero_assets
from eval.simulator.libero.assets import configure, find_assets, has_standins
from tests.support.full_disk import MESSAGE


def assets_folder(path: Path) -> Path:
    for name in ("scenes", "stable_scanned_objects", "stable_hope_objects", "textures"):
        (path / name).mkdir(parents=True)
    return path


def test_assets_are_found_in_a_folder_and_in_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = assets_folder(tmp_path / "assets")
    mesh = folder / "stable_scanned_objects/basket/visual/basket_vis.msh"
    mesh.parent.mkdir(parents=True)
    mesh.write_bytes(b"small")
    monkeypatch.setenv("LIBERO_ASSETS", str(folder))
    assert find_assets() == folder
    assert has_standins(folder)
    archive = tmp_path / "assets.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(folder, "assets")
    monkeypatch.setenv("LIBERO_ASSETS", str(archive))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unpacked = find_assets()
    assert has_standins(unpacked)
    archive_is_read_once = unpacked.stat().st_mtime_ns
    assert find_assets().stat().st_mtime_ns == archive_is_read_once
    assert len(list((tmp_path / "cache" / "worldvla").iterdir())) == 1


def archive_of_assets(folder: Path, compression: str = "xz") -> Path:
    archive = folder / f"assets.tar.{compression}"
    with tarfile.open(archive, f"w:{compression}") as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        tar.add(assets_folder(folder / "assets"), "assets")
        (folder / "mesh").write_bytes(os.urandom(50_000))
        tar.add(folder / "mesh", "assets/textures/mesh")
    return archive


def test_a_full_disk_while_assets_are_unpacked_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBERO_ASSETS", str(archive_of_assets(tmp_path)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:  # the real write into a file of a full disk
        patch.setattr(tarfile, "bltn_open", lambda path, mode: open("/dev/full", mode))  # noqa: SIM115
        with pytest.raises(
            InputError, match=rf"^LIBERO_ASSETS=\S+: cannot unpack it into .*\({MESSAGE}\); free"
        ):
            find_assets()
    assert list((tmp_path / "cache/worldvla").iterdir()) == [], "nothing of it is left"
    assert (find_assets() / "textures/mesh").is_file(), "the next call unpacks it"


@pytest.mark.parametrize("compression", ["bz2", "xz"])  # gzip checks what it read only at the very end
def test_a_damaged_archive_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    archive = archive_of_assets(tmp_path, compression)
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    archive.write_bytes(content)
    monkeypatch.setenv("LIBERO_ASSETS", str(archive))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=rf"^LIBERO_ASSETS={archive}: cannot unpack this archive"):
        find_assets()


def test_the_first_of_two_processes_that_unpack_assets_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBERO_ASSETS", str(archive_of_assets(tmp_path)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    extract = tarfile.TarFile.extractall

    def extract_second(tar: tarfile.TarFile, path: Path, **options: Any) -> None:
        monkeypatch.setattr(tarfile.TarFile, "extractall", extract)
        find_assets()  # another process, which is faster
        extract(tar, path, **options)

    monkeypatch.setattr(tarfile.TarFile, "extractall", extract_second)
    assert (find_assets() / "textures/mesh").is_file()
    assert len(list((tmp_path / "cache/worldvla").iterdir())) == 1


def test_missing_assets_error_names_the_places_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"none does not exist; run: make libero .or set LIBERO_"):
        find_assets()
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(InputError, match="it has no folder scenes"):
        find_assets()
    (tmp_path / "file.tar").write_bytes(b"no archive")
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path / "file.tar"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="cannot unpack"):
        find_assets()
    for name in ("scenes", "textures"):
        (tmp_path / name).write_bytes(os.urandom(50_000))
    with tarfile.open(tmp_path / "whole.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "scenes", "scenes")
        tar.add(tmp_path / "textures", "textures")
    short = (tmp_path / "whole.tar.xz").read_bytes()[:60_000]
    (tmp_path / "short.tar.xz").write_bytes(short)
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path / "short.tar.xz"))
    with pytest.raises(InputError, match="cannot unpack this archive"):
        find_assets()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(InputError, match=r"cannot unpack it into /proc/nowhere.*set XDG_CACHE_HOME"):
        find_assets()
    monkeypatch.delenv("LIBERO_ASSETS")
    monkeypatch.setattr(libero_assets, "package_folder", lambda: tmp_path / "package")
    monkeypatch.setattr(libero_assets, "assets_package", lambda: None)
    with pytest.raises(InputError, match=r"LIBERO_ASSETS is not set, .*-assets-1 to -5 .*run: make"):
        find_assets()


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
