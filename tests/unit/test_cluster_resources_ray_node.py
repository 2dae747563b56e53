"""A node of a Ray cluster leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.waiting import HANG_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]

# Instead of `ray start`: it has a worker in a session of its own and starts another on SIGTERM, which all of
# them ignore.
FAKE_RAY = r"""#!/bin/bash
worker='trap "" TERM; echo $$ >> "$0"; while :; do sleep 0.1; done'
(setsid bash -c "$worker" "$PIDS" &)
trap '(setsid bash -c "$worker" "$PIDS" &)' TERM
echo $$ >> "$PIDS"
while :; do sleep 0.1; done
"""


def test_no_process_outlives_the_node(tmp_path: Path) -> None:
    ray, pids = tmp_path / "ray", tmp_path / "pids"
    ray.write_text(FAKE_RAY)
    ray.chmod(0o755)
    # The program looks for `ray` beside its interpreter.
    code = (
        "import sys; from cluster.resources.ray_node import main; "
        f"sys.executable = {str(tmp_path / 'python')!r}; sys.exit(main([]))"
    )
    environment = {**os.environ, "PIDS": str(pids), "PYTHONPATH": str(ROOT)}
    node = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    try:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        node.send_signal(signal.SIGTERM)
        assert node.wait(HANG_SECONDS) == 128 + signal.SIGTERM
        started = [int(pid) for pid in pids.read_text().split()]
        assert [pid for pid in started if psutil.pid_exists(pid)] == []
    finally:
        node.kill()
        for pid in map(int, pids.read_text().split()):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
