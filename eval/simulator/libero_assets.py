"""Find LIBERO's assets and make its package importable without prompts on stdin."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
import os
import tarfile
import tempfile
import zlib
from pathlib import Path

from data.errors import InputError
from data.files import folder_written_whole, private_folder, remove_leftovers

_ENVIRONMENT = "LIBERO_ASSETS"
_REMEDY = (
    f"set {_ENVIRONMENT} to the `assets` folder of a LIBERO checkout (libero/libero/assets), or an archive"
)
_REQUIRED = ("scenes", "stable_scanned_objects", "stable_hope_objects", "textures")
# The originals of these meshes have several megabytes; stand-ins have a few kilobytes.
_MESHES_WITH_STANDINS = (
    "stable_scanned_objects/basket/visual/basket_vis.msh",
    "stable_scanned_objects/akita_black_bowl/visual/akita_black_bowl_vis.msh",
)
_MIN_ORIGINAL_BYTES = 1_000_000


def package_folder() -> Path:
    """Folder of LIBERO's inner package, with tasks and initial states.

    Raises:
        InputError: hf-libero is not installed.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "LIBERO is not installed; run: pip install --no-deps hf-libero==0.1.4 (with robosuite==1.4.0)"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def find_assets() -> Path:
    """The folder with LIBERO's scenes, objects and textures.

    `LIBERO_ASSETS` may name the folder, or a tar archive of it, which is unpacked once into the
    user's cache folder. Without it the folder inside the installed package is taken.

    Raises:
        InputError: Nothing there, or not LIBERO's assets.
    """
    configured = os.environ.get(_ENVIRONMENT)
    if configured is None:
        folder = package_folder() / "assets"
        if not folder.is_dir():
            raise InputError(
                f"LIBERO's assets not found: {_ENVIRONMENT} is not set and {folder} does not exist; {_REMEDY}"
            )
    elif not Path(configured).exists():
        raise InputError(f"LIBERO's assets not found: {_ENVIRONMENT}={configured} does not exist; {_REMEDY}")
    elif Path(configured).is_file():
        folder = _unpacked(Path(configured))
    else:
        folder = Path(configured)
    missing = [name for name in _REQUIRED if not (folder / name).is_dir()]
    if missing:
        raise InputError(f"{folder}: not LIBERO's assets, it has no folder {missing[0]}; {_REMEDY}")
    return folder.resolve()


def has_standins(assets: Path) -> bool:
    """Whether some visual meshes are small stand-ins for unavailable originals."""
    meshes = (assets / name for name in _MESHES_WITH_STANDINS)
    return any(mesh.is_file() and mesh.stat().st_size < _MIN_ORIGINAL_BYTES for mesh in meshes)


def configure(assets: Path) -> None:
    """Point the `libero` package to its files; must run before it is imported.

    LIBERO reads `$LIBERO_CONFIG_PATH/config.yaml` at import and prompts on stdin where it is missing, so a
    private one is written unless the user has configured one by that variable.
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
    import libero.libero

    libero.libero._assets_path_cache = str(assets)


def _unpacked(archive: Path) -> Path:
    """Unpack an archive into the cache once; concurrent callers use the first complete copy."""
    information = archive.stat()
    name = f"{archive.resolve()}:{information.st_size}:{information.st_mtime_ns}"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "worldvla"
    folder = cache / f"libero-assets-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    remove_leftovers(cache)  # also where there is nothing to unpack: gigabytes
    if not folder.is_dir():
        try:
            with tarfile.open(archive) as tar, folder_written_whole(folder) as unfinished:
                tar.extractall(unfinished, filter="data")
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
            raise InputError(f"{_ENVIRONMENT}={archive}: cannot unpack this archive ({error})") from error
        except OSError as error:
            if not folder.is_dir():  # else another process finished first
                raise _unpacking_error(archive, cache, error) from error
    return _inside(folder)


def _unpacking_error(archive: Path, cache: Path, error: OSError) -> InputError:
    """What kept an archive from being unpacked; gzip and bz2 give errors of damage no number."""
    if error.errno is None or error.filename == str(archive):
        return InputError(f"{_ENVIRONMENT}={archive}: cannot unpack this archive ({error})")
    return InputError(
        f"{_ENVIRONMENT}={archive}: cannot unpack it into {cache} ({error.strerror}); free space there, "
        f"or set XDG_CACHE_HOME to a folder that you may write to, or {_ENVIRONMENT} to an unpacked folder"
    )


def _inside(folder: Path) -> Path:
    """The assets themselves, where the archive wraps them in a folder `assets`."""
    return folder / "assets" if (folder / "assets").is_dir() else folder
