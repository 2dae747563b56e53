"""Whole files: what cannot be written to the end leaves the older file as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.files import write_text_whole, write_whole
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer

WRITERS: list[Callable[[Path], object]] = [
    lambda folder: write_whole(folder / "file", b"new"),
    lambda folder: write_text_whole(folder / "file", "new"),
    lambda folder: TextTokenizer.load().save(folder),
    lambda folder: ImageTokenizer.load().save(folder / "image.safetensors"),
]


@pytest.mark.parametrize("write", WRITERS, ids=["bytes", "text", "text tokenizer", "image tokenizer"])
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
