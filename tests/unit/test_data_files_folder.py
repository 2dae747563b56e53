"""Folders that are written whole: complete under their name, or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.files import folder_written_whole


@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
def test_folder_takes_its_name_when_it_is_complete(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    if exists:
        folder.mkdir(parents=True)
    with folder_written_whole(folder) as temporary:
        assert temporary.parent == folder.parent
        (temporary / "file").write_text("content")
        assert not (folder / "file").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert (folder / "file").read_text() == "content"


def test_error_while_a_folder_is_written_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with folder_written_whole(tmp_path / "folder") as temporary:
            (temporary / "file").write_text("content")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_another_process_has_written_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def write_meanwhile() -> None:
        with folder_written_whole(folder):
            folder.mkdir()
            (folder / "file").write_text("of the other")

    with pytest.raises(OSError, match="not empty"):
        write_meanwhile()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (folder / "file").read_text() == "of the other"
