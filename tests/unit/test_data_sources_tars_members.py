"""Headers of tar files of every kind of writer, and of none."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources.tars.tar_members import DamagedTarError, read_members

CONTENT = b"x" * 700
LONG = "/".join(["a" * 90] * 3) + "/b.json"


def archive(path: Path, names: list[str], form: int = tarfile.PAX_FORMAT, **fields: float) -> Path:
    with tarfile.open(path, "w", format=form) as out:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT)
            for field, value in fields.items():
                setattr(info, field, value)
            out.addfile(info, io.BytesIO(CONTENT))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_is_read(tmp_path: Path, form: int) -> None:
    names = ["./a.json", "b/é.json", *([] if form == tarfile.USTAR_FORMAT else [LONG])]
    path = archive(tmp_path / "a.tar", names, form, mtime=1 if form == tarfile.USTAR_FORMAT else 1.5)
    with tarfile.open(path) as expected:
        wanted = [(each.name.removeprefix("./"), each.offset, each.offset_data) for each in expected]
    found = list(read_members(path))
    assert [(each.name, each.header, each.begin) for each in found] == wanted
    content = path.read_bytes()
    assert all(content[each.begin : each.begin + each.size] == CONTENT for each in found)
    assert list(read_members(path, found[1].header, found[1].end)) == [found[1]]


def test_folders_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "set" / "inner").mkdir(parents=True)
    (tmp_path / "set" / "inner" / "a.json").write_bytes(CONTENT)
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        out.add(tmp_path / "set", "./set")
    assert [each.name for each in read_members(tmp_path / "a.tar")] == ["set/inner/a.json"]


def header(kind: bytes, size: int, name: str = "x.json") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(tarfile.XHDTYPE, 1 << 32), "an extended header of 4294967296 bytes"),
        (header(tarfile.GNUTYPE_LONGNAME, 1 << 21) + bytes(1 << 21), "extended header of 2097152 bytes"),
        (header(tarfile.GNUTYPE_LONGNAME, 0) * 10_000, "more than 4 extended headers"),
        (header(tarfile.GNUTYPE_SPARSE, 0), "a sparse file"),
        (
            header(tarfile.XHDTYPE, 25) + b"25 GNU.sparse.major=1\n000".ljust(512, b"\0") + header(b"0", 0),
            "or of a sparse file",
        ),
        (
            header(tarfile.XHDTYPE, 11) + b"11 size=-5\n".ljust(512, b"\0") + header(b"0", 0),
            "size below zero",
        ),
        (header(b"0", 1 << 45), "cut short in member x.json at offset 0"),
        (b"not a tar file" * 100, "no whole header of a tar file at offset 0"),
        (b"", "the file ends"),
    ],
)
def test_headers_that_lie_cost_nothing(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DamagedTarError, match=reason):
        list(read_members(tmp_path / "a.tar"))


@given(st.data())
def test_no_change_of_bytes_is_anything_but_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(archive(folder / "a.tar", ["a.json", LONG, "b.json"]).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a.tar").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(DamagedTarError):  # and nothing else
        found = list(read_members(folder / "a.tar"))
        assert all(each.begin + each.size <= len(content) for each in found)
