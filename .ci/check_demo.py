"""Check what a demo left in its run folder; exits with 1 and one line per finding when something is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def findings(run: Path) -> list[str]:
    """Everything that a finished demo run should have and this one has not."""
    missing = [
        name
        for name in ("config.yaml", "summary.json", "metrics.jsonl", "report.html", "wandb")
        if not (run / name).exists()
    ]
    if missing:
        return [f"{run}: no {name}" for name in missing]
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    found: list[str] = []
    if not steps or steps != sorted(set(steps)) or steps[-1] != summary["steps"]:
        found.append(f"metrics.jsonl: steps {steps}, expected each once up to {summary['steps']}")
    if not summary["resumed_from"]:
        found.append("summary.json: the training was not resumed from a checkpoint")
    if not summary["loss"]["last"] < summary["loss"]["first"]:
        found.append(f"summary.json: the loss did not fall: {summary['loss']}")
    if not summary["evaluations"]:
        found.append("summary.json: no evaluation")
    for evaluation in summary["evaluations"]:
        if evaluation["errors"] or not evaluation["episodes"]:
            found.append(f"evaluation at step {evaluation['step']}: {evaluation}")
        folder = run / "eval" / f"step_{evaluation['step']:08d}"
        if not (folder / "results.json").exists() or not list(folder.glob("*.mp4")):
            found.append(f"{folder}: no results.json or no video")
    if not list((run / "checkpoints").glob("step_*")):
        found.append("no checkpoint")
    return found


if __name__ == "__main__":
    problems = findings(Path(sys.argv[1]))
    print("\n".join(problems) or f"{sys.argv[1]}: the demo's run folder is complete")
    sys.exit(1 if problems else 0)
