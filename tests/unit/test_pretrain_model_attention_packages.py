"""A flash-attn-4 that another package has overwritten, or that cannot be imported, is told apart."""

from __future__ import annotations

import hashlib
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data.errors import InputError
from pretrain.model.attention import hardware, packages
from pretrain.model.attention.choose import resolve_backend
from pretrain.model.attention.hardware import Hardware, detect

CUDA = torch.device("cuda", 0)
OWN = {"flash_attn/cute/__init__.py": "", "flash_attn/cute/interface.py": "VERSION = 4\n"}
THEIRS = {"flash_attn/__init__.py": "", "flash_attn/cute/interface.py": "VERSION = 2\n"}


def install(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Write files and their record, as pip does."""
    record: list[str] = []
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(text)}")
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    record += ["flash_attn/cute/__pycache__/interface.cpython-311.pyc,,", f"{folder.name}/RECORD,,"]
    (folder / "RECORD").write_text("\n".join(record) + "\n")


def uninstall(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Remove the files of a package's record, as pip does."""
    for path in files:
        (site / path).unlink()
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty `site-packages` in front of the others, on a machine with an H100."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    for cached in (detect, packages.foreign_files, packages.import_error):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        del sys.modules[name]


def chosen(name: str = "auto") -> str:
    return resolve_backend(name, detect(CUDA), torch.bfloat16, 128)  # type: ignore[arg-type]


def test_a_whole_package_is_taken(site: Path) -> None:
    install(site, "flash-attn-4", "4.0.0b36", OWN)
    found = detect(CUDA)
    assert (found.packages["flash-attn-4"], dict(found.faults)) == ("4.0.0b36", {})
    assert chosen() == chosen("flash") == "flash"
    assert sys.modules["flash_attn.cute"].__file__ == str(site / "flash_attn/cute/__init__.py")


def test_flash_attention_2_installed_before_it_does_no_harm(site: Path) -> None:
    install(site, "flash-attn", "2.8.3", {**THEIRS, "flash_attn/cute/extra.py": ""})
    install(site, "flash-attn-4", "4.0.0b36", OWN)
    assert not detect(CUDA).faults
    assert chosen() == "flash"


def test_flash_attention_2_installed_after_it_is_noticed(site: Path) -> None:
    install(site, "flash-attn-4", "4.0.0b36", OWN)
    install(site, "flash-attn", "2.8.3", THEIRS)
    assert chosen() == ("flex" if "triton" in detect(CUDA).packages else "sdpa")
    expected = (
        r"^model.attention=flash: 1 files of flash-attn-4 4.0.0b36 are missing or were overwritten, "
        r"flash_attn/cute/interface.py first \(flash-attn 2.8.3 brings files of the same names\); run `pip "
        r"install --force-reinstall --no-deps flash-attn-4==4.0.0b36`, after flash-attn; or set "
        r"model.attention=auto$"
    )
    with pytest.raises(InputError, match=expected):
        chosen("flash")
    assert "flash_attn" not in sys.modules  # what is overwritten is not imported


def test_files_that_an_uninstalled_package_took_along_are_noticed(site: Path) -> None:
    install(site, "flash-attn-4", "4.0.0b36", OWN)
    install(site, "flash-attn", "2.8.3", THEIRS)
    uninstall(site, "flash-attn", "2.8.3", THEIRS)
    with pytest.raises(InputError, match=r"interface.py first; run `pip install --force-reinstall"):
        chosen("flash")


def test_one_that_cannot_be_imported_is_refused(site: Path) -> None:
    source = {"flash_attn/cute/__init__.py": "import torch\ntorch.no_such_symbol\n"}
    install(site, "flash-attn-4", "4.0.0b36", source)
    assert "flash" not in chosen()
    with pytest.raises(
        InputError, match=r"cannot be imported \(AttributeError: .*no_such_symbol.*'\.\[cuda\]'"
    ):
        chosen("flash")


def test_nothing_is_read_or_imported_where_it_would_not_run(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "flash-attn-4", "4.0.0b36", {"flash_attn/cute/__init__.py": "raise ImportError\n"})
    monkeypatch.setattr(hardware, "flash_4_fault", lambda packages: pytest.fail("looked at"))
    assert detect(torch.device("cpu")).packages["flash-attn-4"] == "4.0.0b36"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert detect(CUDA).capability == (8, 0)


def test_each_file_is_compared_once(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "flash-attn-4", "4.0.0b36", OWN)
    compared: list[str] = []
    compare = packages._is_own
    monkeypatch.setattr(
        packages, "_is_own", lambda found, file: compared.append(str(file)) or compare(found, file)
    )
    for device in (CUDA, torch.device("cuda", 1)):
        assert isinstance(detect(device), Hardware)
    assert sorted(compared) == sorted(OWN)
