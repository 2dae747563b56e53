"""Checks of what machines share: storage, folder and its locks, network (all-reduce), Slurm, Ray's port."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

from cluster.doctor.check_result import FAIL, OK, WARN, CheckResult
from cluster.resources.environment import program_environment
from data.errors import InputError
from data.locks import LocksMissingError, lock
from data.storage.index import INDEX_FILE, DatasetIndex
from data.storage.store import open_store

_NUM_FILES = 20
_MAX_FILE_SECONDS = 0.05  # to write, flush, rename and remove a small file
_MIN_STORAGE_SPEED = 50e6  # bytes a second
_MAX_READ_BYTES = 16_000_000
_RETRY_SECONDS = 10.0
_RAY_PORT = 6379
_ALL_REDUCE_TIMEOUT = 120  # seconds
_ALL_REDUCE_MEGABYTES = 64


def shared_folder(folder: Path, clock: Callable[[], float] = time.perf_counter) -> CheckResult:
    """Measure how long it takes to write, flush, rename and remove a small file where runs are stored.

    Args:
        folder: Where runs are stored.
        clock: Seconds.
    """
    subject = f"folder {folder}"
    seconds: list[float] = []
    probe = folder / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.mkdir(parents=True)
        for number in range(_NUM_FILES):
            start = clock()
            with (probe / "new").open("wb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
            (probe / "new").rename(probe / str(number))
            (probe / str(number)).unlink()
            seconds.append(clock() - start)
        probe.rmdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return CheckResult(
            subject, FAIL, f"cannot be written ({error.strerror})", "set run.dir to another folder"
        )
    speed = f"{1000 * median(seconds):.1f} ms a small file, {free / 1e9:.0f} GB free"
    if median(seconds) > _MAX_FILE_SECONDS:
        return CheckResult(subject, WARN, speed, "slow: keep shards in object storage and logs few")
    return CheckResult(subject, OK, speed)


def file_locks(folder: Path) -> CheckResult:
    """Check that two openings of a file exclude each other where runs are stored, as two commands have to.

    Args:
        folder: Where runs are stored.
    """
    subject = f"locks in {folder}"
    remedy = "start one command a run folder; administrators: mount with locks (Lustre: -o flock)"
    path = folder / f".doctor-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as first, path.open("wb") as second:
            lock(first.fileno(), wait=False)
            try:
                lock(second.fileno(), wait=False)
            except BlockingIOError:
                return CheckResult(subject, OK, "a second command in a run folder is refused")
        return CheckResult(subject, WARN, "a second command in a run folder is not noticed", remedy)
    except LocksMissingError as error:
        found = f"none ({error.strerror}): commands on other machines are not noticed"
        return CheckResult(subject, WARN, found, remedy)
    except OSError as error:
        return CheckResult(
            subject, FAIL, f"cannot be tried ({error.strerror})", "set run.dir to another folder"
        )
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def storage(url: str) -> CheckResult:
    """Read from a data set and measure the speed."""
    subject = f"data {url}"
    try:
        start = time.perf_counter()
        index = DatasetIndex.load(url, _RETRY_SECONDS)
        loaded = time.perf_counter() - start
        entry = index.episodes[int(index.episodes.sizes.argmax())]
        size = min(entry.size, _MAX_READ_BYTES)
        start = time.perf_counter()
        open_store(url, _RETRY_SECONDS).read_range(entry.shard, entry.offset, size)
        rate = size / (time.perf_counter() - start)
    except InputError as error:
        return CheckResult(
            subject, FAIL, str(error).removeprefix(f"{url}: "), "check the url and the credentials"
        )
    speed = (
        f"{INDEX_FILE} in {1000 * loaded:.0f} ms, {rate / 1e6:.0f} MB/s in one request of {size / 1e6:.1f} MB"
    )
    # A small episode measures the latency of a request and not the bandwidth.
    if rate < _MIN_STORAGE_SPEED and size == _MAX_READ_BYTES:
        return CheckResult(
            subject, WARN, speed, "slow: choose a bucket in the same region, or copy the shards"
        )
    return CheckResult(subject, OK, speed)


def all_reduce() -> CheckResult:
    """Measure the bandwidth between the nodes of this allocation, or two processes of this machine."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    subject = f"all-reduce, {nodes} nodes" if nodes > 1 else "all-reduce, this machine"
    python, environment = [sys.executable, "-m"], program_environment(os.environ)
    if nodes > 1:
        first = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        ).stdout.split()[0]
        command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
        command += [*python, "cluster.doctor.all_reduce", str(_ALL_REDUCE_MEGABYTES)]
        environment |= {"MASTER_ADDR": _address(first), "MASTER_PORT": str(_free_port())}
    else:
        command = [*python, "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command += ["-m", "cluster.doctor.all_reduce", str(_ALL_REDUCE_MEGABYTES)]
        environment |= {"OMP_NUM_THREADS": "1"}
    try:
        process = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ALL_REDUCE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        remedy = "the nodes cannot connect: check the firewall and NCCL_SOCKET_IFNAME / GLOO_SOCKET_IFNAME"
        return CheckResult(subject, FAIL, f"nothing in {_ALL_REDUCE_TIMEOUT} s", remedy)
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        cause = (process.stderr.strip().splitlines() or ["no answer"])[-1]
        return CheckResult(
            subject, FAIL, cause[:100], "run with NCCL_DEBUG=INFO and check the network profile"
        )
    measured = json.loads(lines[-1])
    rate, size = measured["gigabytes_per_second"], measured["bytes"] / 1e6
    return CheckResult(
        subject, OK, f"{measured['backend']}, {measured['ranks']} ranks: {rate:.2f} GB/s at {size:.0f} MB"
    )


def slurm() -> CheckResult:
    """Check whether jobs can be submitted here."""
    if shutil.which("sbatch") is None:
        return CheckResult(
            "Slurm", WARN, "no client here", "submit from a login node, or train without Slurm"
        )
    sinfo = subprocess.run(
        ["sinfo", "--noheader", "--format=%D %T"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=30,
        check=False,
    )
    if sinfo.returncode:
        cause = (sinfo.stderr.strip().splitlines() or ["no answer"])[-1]
        # Jobs fail, a run on this machine does not.
        state = FAIL if "SLURM_JOB_ID" in os.environ else WARN
        return CheckResult(
            "Slurm", state, cause[:100], "slurmctld does not answer: contact the cluster's administrators"
        )
    states = ", ".join(sinfo.stdout.split("\n")).strip(", ")
    return CheckResult("Slurm", OK, f"nodes: {states}" if states else "no nodes")


def ray_port(port: int = _RAY_PORT) -> CheckResult:
    """Check whether Ray's default port is free."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            remedy = "cluster.address=auto joins a Ray that runs there; a private one uses another port"
            return CheckResult("Ray's port", WARN, f"{port} is taken", remedy)
    return CheckResult("Ray's port", OK, f"{port} is free")


def _address(node: str) -> str:
    """IP address of a node that Slurm names."""
    node_info = subprocess.run(
        ["scontrol", "show", "node", node],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
    )
    field = next(word for word in node_info.stdout.split() if word.startswith("NodeAddr="))
    return socket.gethostbyname(field.removeprefix("NodeAddr="))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
