"""What `worldvla doctor` looks at on this machine: packages, GPUs, memory, renderer, W&B."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from cluster.doctor.finding import FAIL, OK, WARN, Finding
from pretrain.installation import project_file

_CONSTRAINTS = project_file("constraints.txt")
_LEAST_SHARED_MEMORY = 1e9  # bytes; Ray's object store and gloo live there
_RENDER_SECONDS = 120
# A box that fills the picture: a frame that is not one colour proves that the renderer works.
_RENDER = """
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


def python() -> Finding:
    """The interpreter's version."""
    found = platform.python_version()
    if (3, 11) <= sys.version_info < (3, 13):
        return Finding("Python", OK, found)
    return Finding("Python", FAIL, found, "take Python 3.11 or 3.12")


def packages(constraints: Path = _CONSTRAINTS) -> Finding:
    """Installed versions against those that were tested together."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints.read_text(), re.MULTILINE))
    wrong, missing = [], []
    for name, pin in pins.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if version.split("+")[0] != pin:
            wrong.append(f"{name} {version} (tested {pin})")
    if "torch" in missing or "ray" in missing:
        return Finding("packages", FAIL, f"missing: {', '.join(missing[:5])}", "make setup")
    if wrong:
        return Finding("packages", WARN, "; ".join(wrong[:4]), "make setup installs the tested versions")
    return Finding("packages", OK, f"{len(pins) - len(missing)} of the tested versions")


def gpus() -> Finding:
    """CUDA devices as torch sees them."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            remedy = "pip install torch with CUDA, or look at the driver (nvidia-smi)"
            return Finding(
                "GPUs", FAIL, f"none for torch {torch.__version__}, but nvidia-smi is there", remedy
            )
        return Finding(
            "GPUs", WARN, "none; training runs on the CPU", "take a machine with GPUs for real runs"
        )
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    memory = torch.cuda.get_device_properties(0).total_memory
    if len(set(names)) > 1:
        return Finding("GPUs", WARN, ", ".join(names), "ranks wait for the slowest; take equal GPUs")
    return Finding("GPUs", OK, f"{len(names)} x {names[0]}, {memory / 1e9:.0f} GB each")


def gpu_links() -> Finding | None:
    """How the GPUs of this machine are joined; None with fewer than two."""
    import torch

    if torch.cuda.device_count() < 2 or shutil.which("nvidia-smi") is None:
        return None
    shown = subprocess.run(
        ["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=60, check=False
    )
    links = set(re.findall(r"\b(NV\d+|PIX|PXB|PHB|NODE|SYS)\b", shown.stdout.split("Legend")[0]))
    if any(link.startswith("NV") for link in links):
        return Finding("GPU links", OK, ", ".join(sorted(links)))
    remedy = "keep parallel.tensor at 1 or 2: tensor parallelism wants NVLink"
    return Finding("GPU links", WARN, f"no NVLink ({', '.join(sorted(links)) or 'unknown'})", remedy)


def memory() -> Finding:
    """Host memory and shared memory."""
    import psutil

    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    found = f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free, /dev/shm {shared / 1e9:.1f} GB"
    if shared < _LEAST_SHARED_MEMORY:
        return Finding("memory", WARN, found, "enlarge /dev/shm to 1 GB or more (Ray spills to disk without)")
    return Finding("memory", OK, found)


def renderer() -> Finding:
    """Draw a frame in a process of its own: a broken renderer can end the process."""
    from data.errors import InputError
    from eval.simulator.rendering import choose_backend

    try:
        backend = choose_backend()
    except InputError as error:
        return Finding("renderer", FAIL, "missing", str(error))
    try:
        done = subprocess.run(
            [sys.executable, "-c", _RENDER],
            capture_output=True,
            text=True,
            timeout=_RENDER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "renderer", FAIL, f"{backend} draws nothing in {_RENDER_SECONDS} s", "try MUJOCO_GL=osmesa"
        )
    drawn = done.stdout.strip().isdecimal() and int(done.stdout) > 0
    if done.returncode or not drawn:
        cause = (done.stderr.strip().splitlines() or ["a frame of one colour"])[-1]
        return Finding(
            "renderer", FAIL, f"{backend}: {cause[:80]}", "try MUJOCO_GL=osmesa, or egl with a GPU"
        )
    return Finding("renderer", OK, f"{backend} draws")


def wandb() -> Finding:
    """Whether metrics go to W&B at once."""
    from pretrain.telemetry.wandb_sink import wandb_mode

    mode = wandb_mode("auto")
    if mode == "online":
        return Finding("W&B", OK, "a key is there, runs are online")
    remedy = "wandb login, or upload later with wandb sync runs/<name>/wandb/offline-run-*"
    return Finding("W&B", WARN, f"{mode}: no key found", remedy)
