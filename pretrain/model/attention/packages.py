"""Whether an installed kernel package is whole: its files are its own, and it can be imported."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution

# What a package that was built for another torch, or whose own requirements do not fit, fails with.
_IMPORT_ERRORS = (ImportError, OSError, AttributeError, TypeError, RuntimeError)


def installed_version(package: str) -> str | None:
    """Version of an installed package, which is not imported; None: it is not installed."""
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None


@cache
def foreign_files(package: str, folder: str) -> tuple[str, ...]:
    """Files of an installed package in a folder that are missing, or not those that it was installed with.

    Another package with files of the same names overwrites them when it is installed later, and removes them
    when it is uninstalled. They are compared with the checksums in the package's own record; those of
    flash-attn-4 take some 10 ms.

    Args:
        package: Name of the package.
        folder: Relative to `site-packages`, such as `flash_attn/cute`.

    Raises:
        PackageNotFoundError: It is not installed.
    """
    found = distribution(package)
    files = [file for file in found.files or () if file.as_posix().startswith(f"{folder}/")]
    return tuple(file.as_posix() for file in files if file.hash is not None and not _is_own(found, file))


def _is_own(package: Distribution, file: PackagePath) -> bool:
    assert file.hash is not None
    try:
        with open(str(package.locate_file(file)), "rb") as stream:
            digest = hashlib.file_digest(stream, file.hash.mode).digest()
    except OSError:
        return False
    return urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value


@cache
def import_error(module: str) -> str | None:
    """Why a module cannot be imported, in one line; None: it is, or was."""
    try:
        import_module(module)
    except _IMPORT_ERRORS as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None
