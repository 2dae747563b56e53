"""Choose MuJoCo's rendering backend before it is imported, and check its system library."""

from __future__ import annotations

import ctypes.util
import importlib
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from data.errors import InputError

_LIBRARY_OF_BACKEND = {"osmesa": "OSMesa", "egl": "EGL", "glfw": None}  # glfw's wheel contains its library
_PACKAGE_OF_BACKEND = {"osmesa": "libosmesa6", "egl": "libegl1"}


_GPUS = Path("/proc/driver/nvidia/gpus")  # a folder of each GPU, in the order of the PCI bus
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_BACKEND = "MUJOCO_GL"

_LOG = logging.getLogger(__name__)

_defaults: dict[str, str] = {}


def is_default(name: str, value: str) -> bool:
    """Whether a variable of this process has its value from `choose_backend` and not from the user."""
    return _defaults.get(name) == value


def choose_backend() -> str:
    """Set MUJOCO_GL, PYOPENGL_PLATFORM and MUJOCO_EGL_DEVICE_ID unless the user has; check the library.

    An NVIDIA device renders through EGL, the one that CUDA_VISIBLE_DEVICES gives to this process. Where that
    is empty, or there is none, OSMesa renders in software.

    Returns:
        The backend: `osmesa`, `egl` or `glfw`.

    Raises:
        InputError: The backend's system library is not installed, there is no such backend, or
            PYOPENGL_PLATFORM names another.
    """
    visible = os.environ.get(_VISIBLE)
    backend = _set_default(_BACKEND, "egl" if _sees_gpu() else "osmesa").lower()
    if backend not in _LIBRARY_OF_BACKEND:
        raise InputError(f"MUJOCO_GL={backend}: expected one of {', '.join(_LIBRARY_OF_BACKEND)}")
    if _LIBRARY_OF_BACKEND[backend] is None:
        return backend
    check_library(backend)
    if backend == "egl" and visible is not None:
        _set_default("MUJOCO_EGL_DEVICE_ID", str(egl_device(visible)))
    platform = _set_default("PYOPENGL_PLATFORM", backend)
    if platform.lower() != backend:
        raise InputError(
            f"MUJOCO_GL={backend} and PYOPENGL_PLATFORM={platform} name two renderers; leave the second unset"
        )
    return backend


def uses_egl() -> bool:
    """Whether simulators of this process and of those that it starts render through EGL, on a GPU."""
    return os.environ.get(_BACKEND, "").lower() == "egl"


def render_in_software(reason: str) -> None:
    """Take OSMesa in this process unless the user has chosen, and say why where a GPU could render.

    Args:
        reason: Completes "simulators of this process render in software: ...".
    """
    if _BACKEND not in os.environ and _sees_gpu():
        _LOG.warning("simulators of this process render in software (%s=osmesa): %s", _BACKEND, reason)
    _set_default(_BACKEND, "osmesa")


def check_apart_from_cuda() -> None:
    """Refuse an EGL context in a process that computes with CUDA: both on one device are known to abort.

    By construction there is none: simulators that render on a GPU have processes of their own
    (`eval.pool`, `eval.demonstrations.worker_pool`), and a process that computes on one and replays
    demonstrations takes `render_in_software`.

    Raises:
        InputError: This process would hold both.
    """
    torch: Any = sys.modules.get("torch")  # which is not imported for this
    if uses_egl() and torch is not None and torch.cuda.is_initialized():
        raise InputError(
            f"{_BACKEND}=egl: a simulator cannot render through EGL in a process that computes with CUDA; "
            f"unset {_BACKEND} or set it to osmesa"
        )


def check_library(backend: str) -> None:
    """Look for the system library of a backend.

    Raises:
        InputError: It is not installed.
    """
    library = _LIBRARY_OF_BACKEND[backend]
    if library is not None and ctypes.util.find_library(library) is None:
        raise InputError(
            f"renderer {backend}: system library lib{library} not found, the simulator renders with it; run: "
            f"apt-get install -y --no-install-recommends {_PACKAGE_OF_BACKEND[backend]} (or choose another "
            "by MUJOCO_GL)"
        )


def _sees_gpu() -> bool:
    """Whether there is an NVIDIA device that this process may use."""
    visible = os.environ.get(_VISIBLE)
    return Path("/dev/nvidia0").exists() and (visible is None or _names_gpu(visible))


def egl_device(visible: str) -> int:
    """Number of the GPU in EGL that CUDA_VISIBLE_DEVICES names first; 0 where it names none that is known.

    Args:
        visible: Numbers (`2,3`), UUIDs (`GPU-1b2c...`, possibly shortened), or nothing.
    """
    first = visible.split(",")[0].strip()
    if first.isdecimal():
        return int(first)
    for number, folder in enumerate(sorted(_GPUS.glob("*"))):
        if _names_gpu(first) and first in (folder / "information").read_text("utf-8", "replace"):
            return number
    return 0


def _names_gpu(visible: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names a GPU: from the first other name on, such as -1, CUDA sees none."""
    first = visible.split(",")[0].strip()
    return first.isdecimal() or first.startswith(("GPU-", "MIG-"))


def _set_default(name: str, value: str) -> str:
    """Set a variable unless the user has; return its value."""
    if name not in os.environ:
        os.environ[name] = _defaults[name] = value
    return os.environ[name]


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
    _import_beside_uuids()


def _import_beside_uuids() -> None:
    """Import robosuite's bindings where CUDA_VISIBLE_DEVICES holds UUIDs: they look for a number in it."""
    device, visible = os.environ.get("MUJOCO_EGL_DEVICE_ID"), os.environ.get(_VISIBLE)
    if not visible or device is None or device in visible.split(","):
        return
    del os.environ[_VISIBLE]
    try:
        importlib.import_module("robosuite.utils.binding_utils")
    finally:
        os.environ[_VISIBLE] = visible
