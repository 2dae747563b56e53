"""torch.compile on a CPU writes C++: it needs a compiler and Python's headers."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
HEADER = Path(sysconfig.get_path("include")) / "Python.h"

needs_compiler = pytest.mark.skipif(
    COMPILER is None or not HEADER.is_file(),
    reason=f"torch.compile needs g++ (found {COMPILER}) and {HEADER}: apt-get install g++ python3-dev",
)
