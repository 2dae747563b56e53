"""Where the files beside the packages are: `configs/`, the templates of `slurm/`, constraints.txt.

In a checkout (also one that is installed with `pip install --editable`) they lie beside the packages; a wheel
has them in `worldvla_files/`, which pyproject.toml puts there.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGES = Path(__file__).resolve().parents[1]  # the checkout, or site-packages
_WHEEL_FILES = _PACKAGES / "worldvla_files"


def checkout() -> Path | None:
    """The checkout that runs; None for an installed wheel."""
    return None if _WHEEL_FILES.is_dir() else _PACKAGES


def project_file(name: str) -> Path:
    """A file or folder of the project by its name in the checkout (`configs`, `slurm`, `constraints.txt`)."""
    return (checkout() or _WHEEL_FILES) / name
