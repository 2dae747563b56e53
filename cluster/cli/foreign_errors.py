"""One line for what a library or the operating system refuses; a traceback is for errors of this project."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]
_OWN = tuple(_PROJECT / name for name in ("data", "pretrain", "eval", "cluster"))
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
_SITE_PACKAGES = ("site-packages", "dist-packages")
_REMEDIES = {
    "ray": "unset variables RAY_*, and look for space and memory with `worldvla doctor`",
    "wandb": "correct the variables WANDB_*, or give telemetry.wandb=disabled",
    "h5py": "copy or download the HDF5 file again",
    "torch": "check the driver and the variables TORCH_* and CUDA_*; `worldvla doctor` shows them",
}
_OTHER_REMEDY = "`worldvla doctor` checks the installation"


def describe_foreign_error(error: Exception) -> str | None:
    """The line for an exception that a library raised, or a file or package that is missing.

    Returns:
        What was refused, by whom and what to do; None for an error of this project's own code.
    """
    library = _library_of(error)
    if library is not None:
        remedy = _REMEDIES.get(library, _OTHER_REMEDY)
        return f"{library} refuses: {_words(error)}; {remedy}; --debug shows the traceback"
    if isinstance(error, ImportError):
        return f"{_words(error)}; `worldvla doctor` names missing packages; --debug shows the traceback"
    if isinstance(error, OSError) and error.filename is not None:
        name = error.filename if isinstance(error.filename, str) else str(error.filename)
        return f"{name}: {error.strerror}; correct that, then repeat the command; --debug shows the traceback"
    return None


def _library_of(error: Exception) -> str | None:
    """The library whose code raised the exception; None: this project, or the standard library for it."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if any(path.is_relative_to(own) for own in _OWN):
            return None
        if path.suffix in (".pyx", ".pxi"):  # compiled code names its source: python/ray/_raylet.pyx
            return next((part for part in path.parts if part not in ("/", "python")), path.name)
        for folder in _SITE_PACKAGES:
            if folder in path.parts:
                return path.parts[path.parts.index(folder) + 1].removesuffix(".py")
        is_standard = path.name.startswith("<") or path.resolve().is_relative_to(_STANDARD_LIBRARY)
        if not is_standard:
            return None
    return None


def _words(error: Exception) -> str:
    """Class and first line of an exception."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name
