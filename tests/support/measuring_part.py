"""A part of `benchmarks.gpu` that measures nothing: `python -m tests.support.measuring_part WAY --out FILE`.

done    writes a row and ends
fails   writes a row, prints two lines and ends with 3
mute    ends with 4 without a word
waits   writes a row, starts a process like itself, and both wait for ever, whatever signal asks them to end
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


def main(way: str, out: Path) -> int:
    """Write the row with the number of this process, and end as `way` says; returns the exit status."""
    if way == "mute":
        return 4
    row = {"process": os.getpid(), "child": None}
    if way == "waits":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        words = [
            sys.executable,
            "-c",
            "import signal, threading; signal.signal(15, 1); threading.Event().wait()",
        ]
        row["child"] = subprocess.Popen(words).pid
    print("measured", flush=True)
    temporary = out.with_suffix(".part")
    temporary.write_text(json.dumps({"environment": {"cuda": None}, "rows": [row]}), "utf-8")
    temporary.rename(out)
    if way == "fails":
        print("about to fail\nValueError: no such thing", flush=True)
        return 3
    if way == "waits":
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[3])))
