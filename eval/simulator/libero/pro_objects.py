"""Objects of LIBERO-Pro's tasks (a yellow plate, a larger bowl), added to those that LIBERO knows.

LIBERO-Pro is a copy of LIBERO's package under the same name. Its files that define objects are run here under
other names, against LIBERO itself, and only objects that LIBERO lacks are kept.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from data.errors import InputError

_FILES = (
    "articulated_objects",
    "google_scanned_objects",
    "hope_objects",
    "turbosquid_objects",
    "self_designed_object",
)
_PREFIX = "worldvla_libero_pro_"


def register_objects(package: Path, assets: Path) -> None:
    """Make LIBERO's environments know the objects of LIBERO-Pro; once in a process.

    Args:
        package: Folder of LIBERO-Pro's inner package.
        assets: LIBERO's assets.

    Raises:
        InputError: A file of the package is missing or cannot be run.
    """
    from libero.libero.envs import base_object  # pyright: ignore[reportMissingImports]

    if f"{_PREFIX}{_FILES[-1]}" in sys.modules:
        return
    with _for_pro(base_object, assets):
        for file in _FILES:
            _run(package / "envs" / "objects" / f"{file}.py", f"{_PREFIX}{file}")


@contextmanager
def _for_pro(base_object: ModuleType, assets: Path) -> Iterator[None]:
    """Inside the block LIBERO keeps the objects that it has, and its package names these assets."""
    import libero.libero

    register, get_path = base_object.register_object, libero.libero.get_libero_path
    changing = dict(base_object.VISUAL_CHANGE_OBJECTS_DICT)

    def register_new(target: type) -> type:
        with suppress(AssertionError):  # LIBERO refuses a second object of one name
            register(target)
        return target

    base_object.register_object = register_new  # type: ignore[attr-defined]
    # Whatever LIBERO's configuration file says.
    libero.libero.get_libero_path = lambda key: str(assets) if key == "assets" else get_path(key)
    try:
        yield
    finally:
        base_object.register_object = register  # type: ignore[attr-defined]
        libero.libero.get_libero_path = get_path
        base_object.VISUAL_CHANGE_OBJECTS_DICT.update(changing)


def _run(path: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (OSError, SyntaxError, ImportError) as error:
        del sys.modules[name]
        raise InputError(f"{path}: cannot be loaded ({error}); reinstall LIBERO-Pro") from error
