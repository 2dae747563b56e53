"""A study of two variants whose commands only note that they ran (for the tests of benchmarks.learning)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import demo_runs
from benchmarks.learning import cells, grid
from benchmarks.learning.__main__ import main
from benchmarks.learning.token_budget import StepContent
from data.config import DataConfig, MixtureConfig
from pretrain.config import TrainingConfig

VARIANTS: list[dict[str, Any]] = [
    {"name": "chunk_mask", "title": "chunk + mask", "settings": ["data.mixture.world=0"], "paper": 76.6},
    {"name": "world", "title": "world data", "settings": [], "paper": 78.1},
]
TASK: dict[str, Any] = {
    "name": "lift",
    "title": "Lift",
    "suite": "robosuite_lift",
    "steps": 10,
    "episodes": 4,
}
CONTENT = StepContent(sequences=2, length=160, tokens=300.0, action_samples=2, world_samples=1, padding=0.1)
_SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
name, work, out, content, kill = sys.argv[1:6]
with (Path(work) / "ran.txt").open("a", encoding="utf-8") as file:
    file.write(name + "\\n")
stop = Path(work) / "stop"
if kill == "kill" and stop.exists():
    stop.unlink()
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)
for file, text in json.loads(content).items():
    path = Path(out) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
"""


def _compose(_: str, schema: type[TrainingConfig], __: str, words: Sequence[str]) -> TrainingConfig:
    world = 0.0 if "data.mixture.world=0" in words else 1.0
    return schema(data=DataConfig(mixture=MixtureConfig(world=world)))


class StudyCase:
    """Runs the program on a settings file.

    Args:
        folder: For the settings, and the work in `work`.
        monkeypatch: Replaces the project's commands by a script that notes its name in `work/ran.txt`.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work, self._file = folder / "work", folder / "study.yaml"
        self.settings: dict[str, Any] = {
            "tasks": [dict(TASK)],
            "variants": [dict(variant) for variant in VARIANTS],
            "chunks": [5],
            "seeds": [0],
            "settings": ["experiment=demo", "parallel=single"],
        }
        self.kill = ""  # name of the command that asks the study to end while a file `stop` is there
        self.successes, self.errors = 3, 0
        monkeypatch.setattr(cells, "step_content", lambda *_: CONTENT)
        monkeypatch.setattr(cells, "compose", _compose)  # Hydra takes long
        self.defaults: dict[str, Any] = {"horizon": 100}  # of all commands
        monkeypatch.setattr(grid, "command_settings", lambda *_: self.defaults)
        monkeypatch.setattr(demo_runs, "worldvla", self._command)
        monkeypatch.setattr(demo_runs, "training", self._training)

    def run(self, *words: str) -> int:
        """The exit status of `python -m benchmarks.learning --work WORK words`."""
        self._file.write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        return main(["--work", str(self.work), "--settings", str(self._file), *words])

    @property
    def ran(self) -> Counter[str]:
        """How often each command has run."""
        return Counter((self.work / "ran.txt").read_text("utf-8").splitlines())

    def _training(self, folder: Path, _: Path, steps: int, seed: int, *words: str) -> tuple[str, ...]:
        lines: list[dict[str, Any]] = [
            {"step": step, "tokens": 300 * step, "loss_action": 2.0 / step, "tokens_per_second": 100.0}
            for step in range(1, steps + 1)
        ]
        held_out = {"val_ind/loss_action": 0.5 + seed, "val_ind/accuracy_action": 0.25}
        lines.append({"event": "validation", "step": steps, **held_out})
        metrics = "".join(f"{json.dumps(line)}\n" for line in lines)
        settings = (f"trainer.steps={steps}", *words)
        return self._script(f"train {folder.name}", folder, {"metrics.jsonl": metrics}, settings)

    def _command(self, command: str, *words: str) -> tuple[str, ...]:
        out = Path(next(word for word in words if word.startswith("out=")).removeprefix("out="))
        results = {"successes": self.successes, "episodes": 4, "errors": self.errors}
        files = {"imagine.json": {"psnr": 25.0, "no_change_psnr": 20.0}, "results.json": results}
        content = {name: json.dumps(value) for name, value in files.items()}
        return self._script(f"{command} {out.name}", out, content, words)

    def _script(
        self, name: str, out: Path, files: dict[str, str], settings: tuple[str, ...]
    ) -> tuple[str, ...]:
        kill = "kill" if name == self.kill else ""
        return "-IS", "-c", _SCRIPT, name, str(self.work), str(out), json.dumps(files), kill, *settings
