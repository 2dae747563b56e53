"""`worldvla submit`."""

from __future__ import annotations

import json
import sys

from cluster.cli.invocation import Invocation
from cluster.resources.evaluation_needs import evaluation_line
from cluster.slurm.config import SubmitConfig
from cluster.slurm.submit import plan_submission


def run_submit(config: SubmitConfig, invocation: Invocation) -> None:
    """Write the batch scripts, show them (`--dry-run`) or hand them to sbatch, and print the jobs' ids."""
    submission = plan_submission(config, invocation.overrides)
    notes = [evaluation_line(config)] if "train" in config.stages else []
    if submission.layout:
        notes.insert(0, f"layout: the quickest that fits, by estimate: {' '.join(submission.layout)}")
    if invocation.dry_run:
        print(submission.show(), end="")
        for note in notes:
            print(f"  {note}", file=sys.stderr)  # the script alone is the output
        return
    folder, ids = submission.folder, submission.submit()
    if invocation.json:
        job = submission.main_job
        paths = {"script": str(folder / job.file), "log": str(folder / job.log(ids[job]))}
        print(json.dumps({"job": ids[job], **paths, "stages": {job.stage: ids[job] for job in ids}}))
        return
    show = invocation.console.print
    for job, number in ids.items():
        what = f"{config.run.name} on {config.nodes} nodes" if job.stage == "train" else job.stage
        show(f"  job {number}: {what}, log {folder / job.log(number)}")
    show(f"  run folder {folder.parent}")
    for note in notes:
        show(f"  {note}", markup=False)
    numbers = [str(number) for number in ids.values()]
    show(f"  squeue --job={','.join(numbers)} shows their states, scancel {' '.join(numbers)} ends them")
