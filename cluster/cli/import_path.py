"""Makes this project's packages the ones that are imported, where the caller has others of the same names.

Imported for its effect, first of all: PYTHONPATH=. in a research repository hides `data` or `eval` otherwise.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]  # the folder that holds our packages
_PACKAGES = ("data", "pretrain", "eval", "cluster")


def shadowed_packages(path: list[str]) -> list[str]:
    """Our packages that an import would find elsewhere on `path`."""
    return [name for name in _PACKAGES if _folder_of(name, path) != _PROJECT / name]


def _folder_of(name: str, path: list[str]) -> Path | None:
    """Folder in which a package would be found; of a plain module the folder that holds it."""
    spec = PathFinder.find_spec(name, path)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or []) or [str(Path(spec.origin or "").parent)]
    return Path(places[0]).resolve()


if shadowed_packages(sys.path):
    sys.path.insert(0, str(_PROJECT))
