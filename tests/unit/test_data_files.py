"""Files written as a whole: what cannot be written to the end leaves the older file as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import InputError, first_line
from data.files import (
    disk_full_error,
    is_disk_full,
    naming_full_disk,
    private_folder,
    remove_leftovers,
    replacing,
    user_mistake,
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


WRITE_AND_DIE = """
import os, sys
from pathlib import Path
from data.files import folder_written_whole, replacing

folder = Path(sys.argv[1])
with replacing(folder / "part.json") as file, folder_written_whole(folder / "weights") as weights:
    file.write_text("half")
    (weights / "model").write_text("half")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    print("writing", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that has not written to any folder."""
    monkeypatch.setattr("data.files._cleaned", set())


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("write", [lambda path: write_whole(path / "other", b"x"), remove_leftovers])
def test_what_a_killed_process_has_left_is_removed_by_the_next(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    (tmp_path / ".part.json.123").write_text("not ours")
    (tmp_path / "a.tmp").write_text("not ours")
    command = [sys.executable, "-c", WRITE_AND_DIE, str(tmp_path)]
    assert subprocess.run([*command, "die"], check=False).returncode == -9
    assert len(names(tmp_path)) == 4
    write(tmp_path)
    assert names(tmp_path) - {"other"} == {".part.json.123", "a.tmp"}


MAKE_AND_END = """
import os, sys
from pathlib import Path
from data.files import private_folder

folder = private_folder(Path(sys.argv[1]), "settings")
(folder / "file").write_text("secret")
print(oct(folder.stat().st_mode), flush=True)
if sys.argv[2] == "die":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(("end", "left"), [("die", 1), ("exit", 0)])
def test_a_private_folder_lives_as_long_as_its_process(end: str, left: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE_AND_END, str(tmp_path), end]
    assert subprocess.run(command, check=False, capture_output=True, text=True).stdout == "0o40700\n"
    assert len(names(tmp_path)) == left
    folder = private_folder(tmp_path, "settings")
    assert names(tmp_path) == {folder.name}


@pytest.mark.usefixtures("forgetful")
def test_what_a_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_AND_DIE, str(tmp_path), "live"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "writing\n"
        before = names(tmp_path)
        write_whole(tmp_path / "other", b"x")
        assert names(tmp_path) == before | {"other"}
        process.stdin.close()
    assert process.returncode == 0
    assert names(tmp_path) == {"other", "part.json", "weights"}


@pytest.mark.usefixtures("forgetful")
def test_the_files_of_another_machine_are_removed_after_a_day(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("new", 3600), ("old", 90_000)):
        path = tmp_path / f".{name}.0123abcd-1.tmp"
        path.write_text("half")
        folder = tmp_path / f".tmp-{name}-0123abcd-1-89abcdef.tmp"
        folder.mkdir()
        (folder / "model").write_text("half")
        for each in (path, folder / "model", folder):
            os.utime(each, (now - age, now - age))
    busy = tmp_path / ".tmp-busy-0123abcd-1-89abcdef.tmp"
    busy.mkdir()
    (busy / "model").write_text("just written")
    os.utime(busy, (now - 90_000, now - 90_000))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {".new.0123abcd-1.tmp", ".tmp-new-0123abcd-1-89abcdef.tmp", busy.name}


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


def test_mistakes_of_the_user_are_told_from_defects() -> None:
    mistake = InputError("a setting")
    assert user_mistake(mistake) is mistake
    full = user_mistake(OSError(28, "No space left on device", "a.json"))
    assert str(full).startswith("a.json: cannot be written (No space left on device); free space")
    assert [user_mistake(error) for error in (OSError(13, "Permission denied"), ValueError("bug"))] == [
        None
    ] * 2


@pytest.mark.parametrize(
    ("text", "line"),
    [("one\ntwo", "one"), ("\n  one \ntwo", "one"), ("", "ValueError"), (" \n", "ValueError")],
)
def test_the_first_line_of_an_error_says_something(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line
