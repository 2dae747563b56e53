"""What pictures and physics of a simulator depend on: renderer and versions."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Mapping

from eval.simulator.rendering import choose_backend

TESTED_VERSIONS = {"mujoco": "3.3.2", "robosuite": "1.4.0", "hf-libero": "0.1.4"}
"""Versions that published rates can be compared with: another MuJoCo renders and places differently."""

_QUERY_SECONDS = 300
_QUERY = """
import mujoco
context = mujoco.GLContext(16, 16)
context.make_current()
from OpenGL import GL
print(GL.glGetString(GL.GL_VENDOR).decode())
"""


@functools.cache
def renderer() -> str:
    """Backend and vendor of the renderer: `osmesa (Mesa)`, `egl (NVIDIA Corporation)`.

    The vendor is asked in a process of its own, whose rendering context ends with it: EGL is NVIDIA's or
    Mesa's, and their pixels differ. It is `unknown` where no context can be made.
    """
    backend = choose_backend()
    try:
        query = subprocess.run(
            [sys.executable, "-P", "-c", _QUERY],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_QUERY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{backend} (unknown)"
    lines = query.stdout.split("\n")
    vendor = lines[0].strip() if query.returncode == 0 else ""
    return f"{backend} ({vendor or 'unknown'})"


def version_notes(versions: Mapping[str, str]) -> tuple[str, ...]:
    """A note on every package that is not of the tested version."""
    remedies = {"mujoco": "pip install mujoco=={}", "robosuite": "pip install --no-deps robosuite=={}"}
    remedies["hf-libero"] = "pip install --no-deps hf-libero=={}"
    return tuple(
        f"{package} {versions[package]} is not the tested {tested}: frames and physics may differ "
        f"({remedies[package].format(tested)})"
        for package, tested in TESTED_VERSIONS.items()
        if versions.get(package, tested) != tested
    )
