"""Choose MuJoCo's rendering backend before it is imported, and check its system library."""

from __future__ import annotations

import ctypes.util
import os
import sys
from pathlib import Path
from types import ModuleType

from data.errors import InputError

_LIBRARY_OF_BACKEND = {"osmesa": "OSMesa", "egl": "EGL", "glfw": None}  # glfw's wheel contains its library
_PACKAGE_OF_BACKEND = {"osmesa": "libosmesa6", "egl": "libegl1"}


def choose_backend() -> str:
    """Set MUJOCO_GL and PYOPENGL_PLATFORM unless the user has, and check the library.

    An NVIDIA device renders through EGL; anything else in software through OSMesa.

    Returns:
        The backend: `osmesa`, `egl` or `glfw`.

    Raises:
        InputError: The backend's system library is not installed, there is no such backend, or
            PYOPENGL_PLATFORM names another.
    """
    default = "egl" if Path("/dev/nvidia0").exists() else "osmesa"
    backend = os.environ.setdefault("MUJOCO_GL", default).lower()
    if backend not in _LIBRARY_OF_BACKEND:
        raise InputError(f"MUJOCO_GL={backend}: expected one of {', '.join(_LIBRARY_OF_BACKEND)}")
    library = _LIBRARY_OF_BACKEND[backend]
    if library is None:
        return backend
    if ctypes.util.find_library(library) is None:
        package = _PACKAGE_OF_BACKEND[backend]
        raise InputError(
            f"renderer {backend}: system library lib{library} not found, the simulator renders "
            f"with it; run: apt-get install -y --no-install-recommends {package}"
        )
    platform = os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    if platform.lower() != backend:
        raise InputError(
            f"MUJOCO_GL={backend} and PYOPENGL_PLATFORM={platform} name two renderers; leave the second unset"
        )
    return backend


def quiet_robosuite() -> None:
    """Stop robosuite from warning on the console and from writing a log file shared by all users.

    robosuite reads its macros from a module that the user may add; this adds one with both handlers off
    unless it exists. Call it before robosuite is imported.
    """
    name = "robosuite.macros_private"
    if name in sys.modules or "robosuite" in sys.modules:
        return
    macros = ModuleType(name)
    macros.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules[name] = macros
