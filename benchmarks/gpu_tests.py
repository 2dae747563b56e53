"""Runs `tests/gpu` and counts: passed, failed with the first line of the error, skipped with the reason.

The JSON file is rewritten after each test, so that a run which is cut off or hangs leaves what it had. The
project's pytest settings and other packages' plugins are left out: a machine that was lent may have neither
pytest-xdist nor pytest-timeout, which they ask for; where installed both are used.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import arguments, environment
from data.files import write_text_whole

ROOT = Path(__file__).resolve().parents[1]
_NO_TESTS = 5  # pytest's exit code where it found none


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Recorder:
    """A plugin of pytest that keeps the outcome of each test; under xdist those of all workers.

    Attributes:
        out: JSON file to rewrite after each test; None for none.
        about: Environment of the run.
        outcomes: `passed`, or the kind and the first line of an error or of a reason, by the test's name.
        finished: Whether the run came to its end.
    """

    out: Path | None
    about: dict[str, Any]
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    finished: bool = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome of a test's part; one that fails while it is set up or taken down fails."""
        if report.passed and (report.when != "call" or report.nodeid in self.outcomes):
            return
        kind = "failed" if report.failed else "skipped" if report.skipped else "passed"
        self.outcomes[report.nodeid] = (kind, "" if report.passed else _first_line(report))
        self.write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep a file that could not be imported as failed, one that lacks a package as skipped."""
        if not report.passed:
            self.outcomes[report.nodeid] = ("failed" if report.failed else "skipped", _first_line(report))
            self.write()

    def pytest_sessionfinish(self) -> None:
        """All tests were run."""
        self.finished = True
        self.write()

    def content(self) -> dict[str, Any]:
        """Counts, and the failures and skipped tests by name."""
        of_kind = {
            kind: {name: line for name, (found, line) in self.outcomes.items() if found == kind}
            for kind in ("passed", "failed", "skipped")
        }
        return {
            "name": "gpu_tests",
            "finished": self.finished,
            "environment": self.about,
            "counts": {kind: len(names) for kind, names in of_kind.items()},
            "failed": of_kind["failed"],
            "skipped": of_kind["skipped"],
        }

    def write(self) -> None:
        """Rewrite the JSON file."""
        if self.out is not None:
            write_text_whole(self.out, json.dumps(self.content(), indent=1) + "\n")


def _first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The error's own line, or the reason of a skipped test."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["failed without a word"]
    return lines[0] if crash is not None else lines[-1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests; the exit status is pytest's, 0 also where all were skipped."""
    parser = arguments("gpu_tests", __doc__)
    parser.add_argument("--tests", default=str(ROOT / "tests/gpu"), help="file or folder; default: tests/gpu")
    parser.add_argument("--workers", type=int, default=6, help="with pytest-xdist; default: %(default)s")
    parser.add_argument("--seconds", type=int, default=150, help="of one test, with pytest-timeout")
    options = parser.parse_args(argv)
    recorder = Recorder(options.out, environment(options.device))
    words = ["-q", "-c", os.devnull, f"--rootdir={ROOT}", "-p", "no:cacheprovider"]
    words += ["--continue-on-collection-errors", options.tests]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if options.device == "cuda" and find_spec("xdist") is not None:
        words += ["-p", "xdist", "-n", str(options.workers)]
    if options.device == "cuda" and find_spec("pytest_timeout") is not None:
        words += ["-p", "pytest_timeout", "--timeout", str(options.seconds)]
    code = int(pytest.main(words, plugins=[recorder]))
    counts = recorder.content()["counts"]
    print(", ".join(f"{number} {kind}" for kind, number in counts.items()))
    for name, line in recorder.content()["failed"].items():
        print(f"failed: {name}: {line}")
    return 0 if code == _NO_TESTS and counts["skipped"] else code


if __name__ == "__main__":
    sys.exit(main())
