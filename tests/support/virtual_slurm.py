"""A Slurm cluster of virtual nodes on this machine, started once by each worker of the tests.

Every node is a slurmd in namespaces of its own (processes, mounts, host name) with an address on the
loopback; nothing of the machine's own configuration is read or changed. No time limit of Slurm decides a
test's outcome: a lost node is set DOWN by command, and a cancelled job gets no SIGKILL while a test waits.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from tests.support import waiting

wait_until = partial(waiting.wait_until, poll=0.25)  # each look at Slurm starts a process
ENDED = ("COMPLETED", "FAILED", "NODE_FAIL", "TIMEOUT", "CANCELLED")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "setpriv")
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
SlurmdTimeout=3600
MinJobAge=86400
SlurmctldTimeout=3600
KillWait=3600
JobRequeue=1
FirstJobId={first_job}
MessageTimeout=100
SlurmdParameters=config_overrides
NodeName=n[0-{last}] NodeHostname=localhost NodeAddr=127.0.{worker}.[11-{last_address}] \
Port=[{first}-{last_port}] \
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
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes = folder, [f"n{number}" for number in range(nodes)]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        port = _free_ports(nodes + 1)
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                folder=folder,
                port=port,
                worker=_test_worker(),
                # Jobs choose their ports by their number: two clusters on one machine must not meet.
                first_job=1 + 1_000 * _test_worker() + secrets.randbelow(900),
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
        wait_until(lambda: (self.folder / "munge.sock").exists())
        self._run("slurmctld", [_path("slurmctld"), "-D"])
        for node in self.nodes:
            self.start_node(node)
        self.await_idle()

    def await_idle(self) -> None:
        """Wait until every node is idle."""
        idle = dict.fromkeys(self.nodes, "idle")
        wait_until(lambda: self.states() == idle, lambda: str(self.states()))

    def reset(self) -> None:
        """Cancel every job, start again the nodes that have been lost, and wait until all are idle."""
        self.run("scancel", "--signal=KILL", "--full", "--user=root", check=False)
        self.run("scancel", "--user=root", check=False)
        wait_until(lambda: not self.run("squeue", "--noheader").strip(), lambda: self.run("squeue"))
        for node in self.nodes:
            if node not in self._daemons:
                self.start_node(node)
        self.await_idle()

    def start_node(self, node: str) -> None:
        """Start a node, or start it again after `lose_node`."""
        inside = f"hostname {node} && exec {_path('slurmd')} -D -N {node}"
        namespaces = ["--pid", "--fork", "--kill-child", "--mount", "--uts", "--mount-proc"]
        self._run(node, ["unshare", *namespaces, "bash", "-c", inside])

    def lose_node(self, node: str) -> None:
        """SIGKILL to the node with every process on it; Slurm is informed, before SlurmdTimeout."""
        self._daemons[node].kill()
        self._daemons.pop(node).wait()
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def states(self) -> dict[str, str]:
        """Node -> state as `sinfo` has it."""
        shown = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False)
        return dict(line.split() for line in shown.splitlines())

    def run(self, *command: str, check: bool = True, more: Mapping[str, str] | None = None) -> str:
        """Run a client program (`sbatch`, `squeue`, ...); its output."""
        environment = {**self.environment, **(more or {})}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """What `scontrol show job` shows, by key; of a task of an array as `17_0`."""
        shown = self.run("scontrol", "show", "job", str(number))
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def await_state(self, number: int | str, *states: str) -> dict[str, str]:
        """Wait until a job is in one of the states (`ENDED`); what `scontrol` then shows."""
        wait_until(lambda: self.job(number)["JobState"] in states, lambda: str(self.job(number)))
        return self.job(number)

    def await_while_active(
        self, number: int, condition: Callable[[], bool], describe: Callable[[], str] = str
    ) -> None:
        """Wait until the condition holds; fail at once when the job has ended without it."""

        def holds() -> bool:
            ended = self.job(number)["JobState"] in ENDED  # before the condition: it may come true at the end
            if condition():
                return True
            assert not ended, f"job {number}: {self.job(number)['JobState']}: {describe()}"
            return False

        wait_until(holds, describe)

    def await_requeued(self, number: int, restarts: int = 1) -> None:
        """Wait until a job is back in the queue, `restarts` times by now, and has gone from the nodes."""
        seen: list[str] = []

        def is_requeued() -> bool:
            job, states, processes = self.job(number), self.states(), self.processes()
            seen.append(f"{job['JobState']} {job['Reason']} {states} {processes}")
            assert job["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), seen[-3:]
            free = all(state[:4] in ("idle", "down") for state in states.values())
            return (
                job["Restarts"] == str(restarts) and job["JobState"] == "PENDING" and free and not processes
            )

        wait_until(is_requeued, lambda: str(seen[-3:]))

    def restart_requeued(self, number: int, restarts: int = 1) -> None:
        """Wait until a job is requeued and start it again, without the two minutes that Slurm lets pass.

        Not at once: a node takes a start whose credential is not a second younger than the end of the start
        before for one that has been killed ("Job credential revoked"), and the job has failed.
        """
        self.await_requeued(number, restarts)
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now+5")
        job = self.await_state(number, "RUNNING", "COMPLETING", "COMPLETED", "FAILED")
        assert job["JobState"] != "FAILED", job

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
            # unshare ignores TERM; --kill-child takes the whole node along.
            process.send_signal(signal.SIGKILL if name in self.nodes else signal.SIGTERM)
            process.wait()

    def _run(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            # They end with the tests, also where those are killed.
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


_MUNGE_FILES = {
    "key-file": "munge.key",
    "socket": "munge.sock",
    "pid-file": "munged.pid",
    "log-file": "munged.log",
    "seed-file": "munged.seed",
}


@contextmanager
def virtual_slurm(nodes: int) -> Iterator[VirtualSlurm]:
    """A cluster for the length of a `with` block."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = VirtualSlurm(folder, nodes)
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


def _test_worker() -> int:
    """Number of this process among pytest-xdist's workers, below 10."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that are free, below those of outgoing connections."""
    for first in range(18_000 + 200 * _test_worker() + secrets.randbelow(100), 20_000, count):
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
