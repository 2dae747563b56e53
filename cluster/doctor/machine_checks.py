"""Checks of this machine: packages, GPUs, memory, renderer, W&B."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from cluster.doctor.check_result import FAIL, OK, WARN, CheckResult
from cluster.resources.environment import program_environment
from pretrain.installation import project_file

_CONSTRAINTS = project_file("constraints.txt")
_MIN_SHARED_MEMORY = 1e9  # bytes; of Ray's object store and gloo
_RENDER_TIMEOUT = 120  # seconds
# A box that fills the picture: the frame of a renderer that works has more than one colour.
_RENDER_SCRIPT = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='box' size='.2 .3 .4'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    print(int(renderer.render().std()))
"""


def python() -> CheckResult:
    """Check the interpreter's version."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info < (3, 14):
        return CheckResult("Python", OK, version)
    return CheckResult("Python", FAIL, version, "use Python 3.11, 3.12 or 3.13")


def packages(constraints: Path = _CONSTRAINTS) -> CheckResult:
    """Compare installed versions with those that were tested together."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE))
    different, missing = [], []
    for name, pin in pins.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if version.split("+")[0] != pin:
            different.append(f"{name} {version} (tested {pin})")
    if "torch" in missing or "ray" in missing:
        return CheckResult("packages", FAIL, f"missing: {', '.join(missing[:5])}", "make setup")
    if different:
        return CheckResult(
            "packages", WARN, "; ".join(different[:4]), "make setup installs the tested versions"
        )
    return CheckResult("packages", OK, f"{len(pins) - len(missing)} of the tested versions")


def gpus() -> CheckResult:
    """Check the CUDA devices that torch finds."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            remedy = "pip install torch with CUDA, or check the driver (nvidia-smi)"
            return CheckResult(
                "GPUs", FAIL, f"none for torch {torch.__version__}, but nvidia-smi is there", remedy
            )
        return CheckResult(
            "GPUs", WARN, "none; training runs on the CPU", "use a machine with GPUs for real runs"
        )
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    memory = torch.cuda.get_device_properties(0).total_memory
    if len(set(names)) > 1:
        return CheckResult("GPUs", WARN, ", ".join(names), "ranks wait for the slowest; use equal GPUs")
    return CheckResult("GPUs", OK, f"{len(names)} x {names[0]}, {memory / 1e9:.0f} GB each")


def gpu_links() -> CheckResult | None:
    """Check how the GPUs of this machine are connected; None with fewer than two."""
    import torch

    if torch.cuda.device_count() < 2 or shutil.which("nvidia-smi") is None:
        return None
    topology = subprocess.run(
        ["nvidia-smi", "topo", "-m"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=60,
        check=False,
    )
    links = set(re.findall(r"\b(NV\d+|PIX|PXB|PHB|NODE|SYS)\b", topology.stdout.split("Legend")[0]))
    if any(link.startswith("NV") for link in links):
        return CheckResult("GPU links", OK, ", ".join(sorted(links)))
    remedy = "keep parallel.tensor at 1 or 2: tensor parallelism needs NVLink"
    return CheckResult("GPU links", WARN, f"no NVLink ({', '.join(sorted(links)) or 'unknown'})", remedy)


def memory() -> CheckResult:
    """Check host memory and shared memory."""
    import psutil

    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    sizes = f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free, /dev/shm {shared / 1e9:.1f} GB"
    if shared < _MIN_SHARED_MEMORY:
        return CheckResult(
            "memory", WARN, sizes, "enlarge /dev/shm to 1 GB or more (otherwise Ray spills to disk)"
        )
    return CheckResult("memory", OK, sizes)


def renderer() -> CheckResult:
    """Render a frame in a process of its own: a broken renderer can end the process."""
    from data.errors import InputError
    from eval.simulator.rendering import choose_backend

    try:
        backend = choose_backend()
    except InputError as error:
        return CheckResult("renderer", FAIL, "missing", str(error))
    names = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
    chosen = {name: value for name in names if (value := os.environ.get(name))}
    try:
        process = subprocess.run(
            [sys.executable, "-c", _RENDER_SCRIPT],
            env=program_environment(os.environ) | chosen,  # also those that only `choose_backend` has set
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_RENDER_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return CheckResult(
            "renderer", FAIL, f"{backend} renders nothing in {_RENDER_TIMEOUT} s", "try MUJOCO_GL=osmesa"
        )
    rendered = process.stdout.strip().isdecimal() and int(process.stdout) > 0
    if process.returncode or not rendered:
        cause = (process.stderr.strip().splitlines() or ["a frame of one colour"])[-1]
        return CheckResult(
            "renderer", FAIL, f"{backend}: {cause[:80]}", "try MUJOCO_GL=osmesa, or egl with a GPU"
        )
    return CheckResult("renderer", OK, f"{backend} renders")


def wandb() -> CheckResult:
    """Check whether metrics are sent to W&B during a run."""
    from pretrain.telemetry.wandb_sink import wandb_mode

    mode = wandb_mode("auto")
    if mode == "online":
        return CheckResult("W&B", OK, "a key is set, runs are online")
    remedy = "wandb login, or upload later with wandb sync runs/<name>/wandb/offline-run-*"
    return CheckResult("W&B", WARN, f"{mode}: no key found", remedy)
