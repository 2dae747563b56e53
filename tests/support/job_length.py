"""A training's last step, chosen while its job runs."""

from __future__ import annotations

import sys
from pathlib import Path


class JobLength:
    """The step at which a job's training stops, read anew at each start of the job.

    A job's words are fixed once it is submitted. Its virtual environment, however, is activated at each
    start: this one also exports the step that stands in a file. So a test can let a job train until a signal
    has arrived, however fast the machine is, and then let it come to an end.

    Args:
        folder: Empty or absent; for the virtual environment and the file.
    """

    WORD = "trainer.stop_after=${oc.env:LAST_STEP}"  # belongs to the job's words

    def __init__(self, folder: Path) -> None:
        self._file = folder / "last_step"
        self.environment = folder / "venv"  # for `VENV` and `slurm.venv`
        scripts = self.environment / "bin"
        scripts.mkdir(parents=True)
        source = f"source {sys.prefix}/bin/activate\nexport LAST_STEP=$(cat {self._file})\n"
        (scripts / "activate").write_text(source)
        self.set(10**6)

    def set(self, last_step: int) -> None:
        """Let the training stop at `last_step` from the job's next start on."""
        self._file.write_text(str(last_step))
