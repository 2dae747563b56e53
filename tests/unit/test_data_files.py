"""Files written as a whole: what cannot be written to the end leaves the older file as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.files import (
    disk_full_error,
    is_disk_full,
    naming_full_disk,
    replacing,
    write_text_whole,
    write_whole,
)
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from tests.support.full_disk import MESSAGE, fill


def write_in_parts(path: Path) -> None:
    with replacing(path) as temporary, temporary.open("w") as file:
        file.write("ne")
        file.write("w")


WRITERS: list[Callable[[Path], object]] = [
    lambda folder: write_whole(folder / "file", b"new"),
    lambda folder: write_text_whole(folder / "file", "new"),
    lambda folder: write_in_parts(folder / "file"),
    lambda folder: TextTokenizer.load().save(folder),
    lambda folder: ImageTokenizer.load().save(folder / "image.safetensors"),
]


@pytest.mark.parametrize(
    "write", WRITERS, ids=["bytes", "text", "parts", "text tokenizer", "image tokenizer"]
)
def test_a_full_disk_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write(tmp_path)
    assert path.read_bytes() != b"old"


def test_a_block_that_fails_leaves_the_older_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_and_fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        write_and_fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_older_file_stays_readable_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    fill(tmp_path / "file")
    with pytest.raises(OSError, match=MESSAGE) as raised:
        write_whole(tmp_path / "file", b"new")
    assert is_disk_full(raised.value)
    assert raised.value.filename == str(tmp_path / "file")
    message = str(disk_full_error(raised.value))
    assert message.startswith(f"{tmp_path / 'file'}: cannot be written ({MESSAGE}); free space")
    assert "\n" not in message


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    refused = ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(ConnectionResetError) as raised, naming_full_disk(tmp_path / "file"):
        raise refused
    assert raised.value is refused
    assert not is_disk_full(refused)
    assert not is_disk_full(ValueError("no number"))
    assert is_disk_full(OSError(122, "Disk quota exceeded"))
