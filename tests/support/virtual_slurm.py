"""A Slurm cluster of virtual nodes on this machine, started and stopped by the tests.

Every node is a slurmd in namespaces of its own (processes, mounts, host name) with an address on the
loopback; nothing of the machine's own configuration is read or changed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.waiting import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
_CONFIGURATION = """\
ClusterName=virtual
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait={kill_wait}
JobRequeue=1
FirstJobId={first_job}
MessageTimeout=10
SlurmdParameters=config_overrides
NodeName=n[0-{last}] NodeHostname=localhost NodeAddr=127.0.0.[11-{last_address}] Port=[{first}-{last_port}] \
CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=train Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no virtual cluster can be started here; None: one can."""
    absent = [program for program in PROGRAMS if _find(program) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge"
        return f"{', '.join(absent)} not installed (apt-get install {packages})"
    if os.geteuid() != 0:
        return "namespaces for virtual nodes need root"
    probe = subprocess.run(["unshare", "--pid", "--fork", "--mount", "--uts", "true"], capture_output=True)
    return None if probe.returncode == 0 else f"unshare: {probe.stderr.decode().strip()}"


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class VirtualSlurm:
    """A running cluster.

    Args:
        folder: For everything that it writes; short, since sockets lie in it.
        nodes: Number of nodes `n0`, `n1`, ...
        kill_wait: Seconds from SIGTERM to SIGKILL of a job that is cancelled (Slurm's own default: 30).
    """

    def __init__(self, folder: Path, nodes: int, kill_wait: int = 10) -> None:
        self.folder, self.nodes = folder, [f"n{number}" for number in range(nodes)]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        port = _free_ports(nodes + 1)
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                folder=folder,
                port=port,
                kill_wait=kill_wait,
                # Jobs choose their ports by their number: two clusters on one machine must not meet.
                first_job=1 + secrets.randbelow(9_000),
                first=port + 1,
                last_port=port + nodes,
                last=nodes - 1,
                last_address=10 + nodes,
            )
        )
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def start(self) -> None:
        """Start the daemons and wait until every node is idle."""
        munge = [f"--{name}={self.folder}/{path}" for name, path in _MUNGE_FILES.items()]
        self._run("munged", [_path("munged"), "--foreground", "--force", *munge])
        wait_until(lambda: (self.folder / "munge.sock").exists(), 20)
        self._run("slurmctld", [_path("slurmctld"), "-D"])
        for node in self.nodes:
            self.start_node(node)
        wait_until(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), 60)

    def start_node(self, node: str) -> None:
        """Start a node, or start it again after `kill_node`."""
        inside = f"hostname {node} && exec {_path('slurmd')} -D -N {node}"
        namespaces = ["--pid", "--fork", "--kill-child", "--mount", "--uts", "--mount-proc"]
        self._run(node, ["unshare", *namespaces, "bash", "-c", inside])

    def kill_node(self, node: str) -> None:
        """SIGKILL to the node with every process on it."""
        self._daemons[node].kill()
        self._daemons.pop(node).wait()

    def states(self) -> dict[str, str]:
        """Node -> state as `sinfo` has it."""
        shown = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False)
        return dict(line.split() for line in shown.splitlines())

    def run(self, *command: str, check: bool = True, more: Mapping[str, str] | None = None) -> str:
        """Run a client program (`sbatch`, `squeue`, ...); its output."""
        environment = {**self.environment, **(more or {})}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """What `scontrol show job` tells, by key; of a task of an array as `17_0`."""
        shown = self.run("scontrol", "show", "job", str(number))
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def await_state(self, number: int | str, states: str | tuple[str, ...], seconds: float) -> dict[str, str]:
        """Wait until a job is in one of the states; what `scontrol` then tells."""
        wanted = (states,) if isinstance(states, str) else states
        wait_until(lambda: self.job(number)["JobState"] in wanted, seconds)
        return self.job(number)

    def await_rest(self, number: int, times: int = 1) -> None:
        """Wait until a job is back in the queue for the `times`th time and has gone from the nodes."""
        seen: list[str] = []

        def rests() -> bool:
            told = self.job(number)
            states = self.states()
            seen.append(f"{told['JobState']} {told['Reason']} {states} {self.processes()}")
            assert told["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), seen[-3:]
            resting = all(state[:4] in ("idle", "down") for state in states.values())
            return (
                told["Restarts"] == str(times)
                and told["JobState"] == "PENDING"
                and resting
                and not self.processes()
            )

        wait_until(rests, 120, lambda: str(seen[-3:]))

    def begin_again(self, number: int, times: int = 1) -> None:
        """Await a job's rest and start it again without Slurm's own two minutes of rest.

        Not at once: a node takes a start whose credential is not a second younger than the end of the start
        before for one that has been killed ("Job credential revoked"), and the job has failed.
        """
        self.await_rest(number, times)
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now+5")
        ready = ("RUNNING", "COMPLETING", "COMPLETED", "FAILED")
        told = self.await_state(number, ready, 90)
        assert told["JobState"] != "FAILED", told

    def processes(self) -> list[str]:
        """Command lines of all processes on the nodes but the daemons themselves."""
        found: list[str] = []
        for node in self.nodes:
            if daemon := self._daemons.get(node):
                children = psutil.Process(daemon.pid).children(recursive=True)
                found += [" ".join(_command_line(child)) for child in children]
        return [line for line in found if line and "slurmd" not in line.split(" ")[0]]

    def stop(self) -> None:
        """End everything."""
        for name, process in reversed(self._daemons.items()):
            # unshare heeds no TERM; --kill-child takes the whole node along.
            process.send_signal(signal.SIGKILL if name in self.nodes else signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _run(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


_MUNGE_FILES = {
    "key-file": "munge.key",
    "socket": "munge.sock",
    "pid-file": "munged.pid",
    "log-file": "munged.log",
    "seed-file": "munged.seed",
}


@contextmanager
def virtual_slurm(nodes: int, kill_wait: int = 10) -> Iterator[VirtualSlurm]:
    """A cluster for the length of a `with` block."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = VirtualSlurm(folder, nodes, kill_wait)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def _path(program: str) -> str:
    found = _find(program)
    assert found is not None, missing()
    return found


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that are free, below those of outgoing connections."""
    for first in range(18_000 + secrets.randbelow(1000), 20_000, count):
        with_all = [socket.socket() for _ in range(count)]
        try:
            for number, probe in enumerate(with_all):
                probe.bind(("127.0.0.1", first + number))
            return first
        except OSError:
            continue
        finally:
            for probe in with_all:
                probe.close()
    raise AssertionError("no free ports")
