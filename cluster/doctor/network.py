"""What `worldvla doctor` looks at between machines: storage, shared folder, all-reduce, Slurm, Ray's port."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from statistics import median

from cluster.doctor.finding import FAIL, OK, WARN, Finding
from data.errors import InputError
from data.storage.index import INDEX_FILE, DatasetIndex
from data.storage.store import open_store

_FILES = 20
_SLOW_FILE = 0.05  # seconds to write, flush, rename and remove a small file
_SLOW_STORAGE = 50e6  # bytes a second
_READ = 16_000_000  # bytes at most
_RETRY_SECONDS = 10.0
_RAY_PORT = 6379
_SECONDS = 120
_MEGABYTES = 64


def shared_folder(folder: Path) -> Finding:
    """Time to write, flush, rename and remove a small file where runs are kept."""
    subject = f"folder {folder}"
    taken: list[float] = []
    probe = folder / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.mkdir(parents=True)
        for number in range(_FILES):
            start = time.perf_counter()
            with (probe / "new").open("wb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
            (probe / "new").rename(probe / str(number))
            (probe / str(number)).unlink()
            taken.append(time.perf_counter() - start)
        probe.rmdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            subject, FAIL, f"cannot be written ({error.strerror})", "set run.dir to another folder"
        )
    found = f"{1000 * median(taken):.1f} ms a small file, {free / 1e9:.0f} GB free"
    if median(taken) > _SLOW_FILE:
        return Finding(subject, WARN, found, "slow: keep shards in object storage and logs few")
    return Finding(subject, OK, found)


def storage(url: str) -> Finding:
    """Whether a data set can be read, and how fast."""
    subject = f"data {url}"
    try:
        start = time.perf_counter()
        index = DatasetIndex.load(url, _RETRY_SECONDS)
        loaded = time.perf_counter() - start
        entry = index.episodes[int(index.episodes.sizes.argmax())]
        size = min(entry.size, _READ)
        start = time.perf_counter()
        open_store(url, _RETRY_SECONDS).read_range(entry.shard, entry.offset, size)
        rate = size / (time.perf_counter() - start)
    except InputError as error:
        return Finding(
            subject, FAIL, str(error).removeprefix(f"{url}: "), "look at the url and the credentials"
        )
    found = (
        f"{INDEX_FILE} in {1000 * loaded:.0f} ms, {rate / 1e6:.0f} MB/s in one request of {size / 1e6:.1f} MB"
    )
    # A small episode tells the delay of a request and not the bandwidth.
    if rate < _SLOW_STORAGE and size == _READ:
        return Finding(subject, WARN, found, "slow: choose a bucket in the same region, or copy the shards")
    return Finding(subject, OK, found)


def all_reduce() -> Finding:
    """Bandwidth between the nodes of this allocation, or between two processes of this machine."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    subject = f"all-reduce, {nodes} nodes" if nodes > 1 else "all-reduce, this machine"
    python = [sys.executable, "-m"]
    if nodes > 1:
        first = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[0]
        command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
        command += [*python, "cluster.doctor.all_reduce", str(_MEGABYTES)]
        environment = {**os.environ, "MASTER_ADDR": _address(first), "MASTER_PORT": str(_free_port())}
    else:
        command = [*python, "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command += ["-m", "cluster.doctor.all_reduce", str(_MEGABYTES)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        remedy = "nodes cannot talk: look at firewall and NCCL_SOCKET_IFNAME / GLOO_SOCKET_IFNAME"
        return Finding(subject, FAIL, f"nothing in {_SECONDS} s", remedy)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        cause = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return Finding(subject, FAIL, cause[:100], "run with NCCL_DEBUG=INFO and look at the network profile")
    told = json.loads(lines[-1])
    rate, size = told["gigabytes_per_second"], told["bytes"] / 1e6
    return Finding(subject, OK, f"{told['backend']}, {told['ranks']} ranks: {rate:.2f} GB/s at {size:.0f} MB")


def slurm() -> Finding:
    """Whether jobs can be submitted here."""
    if shutil.which("sbatch") is None:
        return Finding("Slurm", WARN, "no client here", "submit from a login node, or train without Slurm")
    shown = subprocess.run(
        ["sinfo", "--noheader", "--format=%D %T"], capture_output=True, text=True, timeout=30, check=False
    )
    if shown.returncode:
        cause = (shown.stderr.strip().splitlines() or ["no answer"])[-1]
        # Trouble for jobs, none for a run on this machine.
        state = FAIL if "SLURM_JOB_ID" in os.environ else WARN
        return Finding(
            "Slurm", state, cause[:100], "slurmctld does not answer: tell whoever runs the cluster"
        )
    states = ", ".join(shown.stdout.split("\n")).strip(", ")
    return Finding("Slurm", OK, f"nodes: {states}" if states else "no nodes")


def ray_port(port: int = _RAY_PORT) -> Finding:
    """Whether Ray's usual port is free, or Ray listens there."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            remedy = "cluster.address=auto joins a Ray that runs there; a private one takes another port"
            return Finding("Ray's port", WARN, f"{port} is taken", remedy)
    return Finding("Ray's port", OK, f"{port} is free")


def _address(node: str) -> str:
    """Address of a node as Slurm knows it."""
    shown = subprocess.run(["scontrol", "show", "node", node], capture_output=True, text=True, check=True)
    named = next(word for word in shown.stdout.split() if word.startswith("NodeAddr="))
    return socket.gethostbyname(named.removeprefix("NodeAddr="))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
