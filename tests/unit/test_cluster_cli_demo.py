"""Order of the demo's stages, names of its runs, and what a resumed demo skips; the stages are fakes."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.cli.config import DemoConfig
from cluster.cli.handlers import demo
from cluster.cli.invocation import Invocation
from cluster.config import RootConfig
from cluster.run import preflight
from data.config import PrepareConfig
from data.errors import InputError
from eval.config import CollectConfig
from pretrain.checkpoint.location import step_folder
from pretrain.run_folder import RunFolder


@dataclass
class FakeStages:
    """Records the settings of each stage, in order."""

    calls: list[Any] = field(default_factory=list)
    checked: list[Any] = field(default_factory=list)
    interrupt_at: int | None = None

    def collect(self, config: CollectConfig, invocation: Invocation) -> None:
        self.calls.append(config)
        Path(config.out).mkdir(parents=True)

    def prepare(self, config: PrepareConfig, invocation: Invocation) -> None:
        self.calls.append(config)
        Path(config.out).mkdir(parents=True)
        (Path(config.out) / "index.json").touch()

    def supervise(
        self, config: RootConfig, console: Console, train: Any, evaluate: Any, on_trained: Any = None
    ) -> RunFolder:
        self.calls.append(config)
        folder = RunFolder.of(config.run)
        last = config.trainer.stop_after or config.trainer.steps
        if last == self.interrupt_at:
            raise KeyboardInterrupt
        checkpoint = step_folder(folder.checkpoints, last)
        checkpoint.mkdir(parents=True)
        (checkpoint / "READY").touch()
        folder.metrics.touch()
        if on_trained is not None:
            on_trained()
        return folder

    def layouts(self) -> list[tuple[int, int, int | str, int | None, int]]:
        runs = [config for config in self.calls if isinstance(config, RootConfig)]
        return [
            (c.parallel.tensor, c.parallel.data, c.parallel.zero_stage, c.trainer.stop_after, c.trainer.steps)
            for c in runs
        ]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    stages = FakeStages()
    monkeypatch.setattr(demo, "run_collect", stages.collect)
    monkeypatch.setattr(demo, "run_prepare", stages.prepare)
    monkeypatch.setattr(demo, "supervise", stages.supervise)
    monkeypatch.setattr(demo, "check_run", stages.checked.append)
    monkeypatch.setattr(demo, "tokenizer_quality", lambda config: "not measured")
    return stages


def settings(folder: Path) -> DemoConfig:
    config = DemoConfig()
    config.run.name, config.run.dir, config.data.url = "demo", str(folder), ""
    config.trainer.steps, config.demo.first_steps = 100, 30
    config.parallel.tensor = config.parallel.data = 2
    return config


def run(folder: Path) -> str:
    shown = io.StringIO()
    demo.run_demo(settings(folder), Invocation(Console(file=shown, width=200)))
    return shown.getvalue()


def test_six_stages_with_a_resume_at_another_layout(stages: FakeStages, tmp_path: Path) -> None:
    shown = run(tmp_path)
    titles = [line.split(":")[0] for line in shown.splitlines() if "/6 " in line]
    assert titles == [
        f"{i}/6 {name}"
        for i, name in enumerate(["collect", "prepare", "train", "resume", "evaluate", "report"], start=1)
    ]
    assert shown.count("done in") == 6
    assert stages.layouts() == [(2, 2, 3, 30, 100), (1, 2, 1, None, 100)]
    data = tmp_path / "demo-data"
    collected, prepared, first = stages.calls[:3]
    assert (collected.episodes, collected.displaced) == (100, 0.7)
    assert (collected.out, prepared.source) == (str(data / "demonstrations"), str(data / "demonstrations"))
    assert (prepared.out, first.data.url) == (str(data / "shards"), str(data / "shards"))
    assert str(tmp_path / "demo" / "report.html") in shown


def test_a_finished_demo_is_not_changed(stages: FakeStages, tmp_path: Path) -> None:
    run(tmp_path)
    report = tmp_path / "demo" / "report.html"
    before = report.stat().st_mtime_ns
    assert "this one is demo-2" in run(tmp_path)
    assert (tmp_path / "demo-2" / "report.html").exists()
    assert (tmp_path / "demo-2-data").exists()
    assert report.stat().st_mtime_ns == before


def test_an_interrupted_demo_is_resumed(stages: FakeStages, tmp_path: Path) -> None:
    stages.interrupt_at = 100
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    stages.calls.clear()
    stages.interrupt_at = None
    shown = run(tmp_path)
    assert "is not finished; resuming it" in shown
    assert shown.count("complete already") == 3
    assert stages.layouts() == [(1, 2, 1, None, 100)]
    assert [type(call) for call in stages.calls] == [DemoConfig]


def test_too_few_cpus_are_refused_before_anything_is_collected(
    stages: FakeStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "check_run", preflight.check_run)
    config = settings(tmp_path)
    config.cluster.cpus, config.cluster.gpus_per_rank = 2, 0
    with pytest.raises(InputError, match=r"cluster\.cpus offers 2 CPUs to Ray, the run needs 4"):
        demo.run_demo(config, Invocation(Console(file=io.StringIO())))
    assert stages.calls == []


def test_a_short_demo_stops_half_way(stages: FakeStages, tmp_path: Path) -> None:
    config = settings(tmp_path)
    config.trainer.steps, config.demo.first_steps = 21, 30
    demo.run_demo(config, Invocation(Console(file=io.StringIO())))
    assert [stop for _, _, _, stop, _ in stages.layouts()] == [10, None]


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("demo", "first_steps", 0, r"demo\.first_steps=0: expected 1 or more"),
        ("trainer", "steps", 1, r"trainer\.steps=1: expected 2 or more"),
        ("trainer", "stop_after", 5, r"trainer\.stop_after: .*; set demo\.first_steps"),
    ],
)
def test_steps_that_do_not_fit_are_refused(
    section: str, name: str, value: int, message: str, stages: FakeStages, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    setattr(getattr(config, section), name, value)
    with pytest.raises(InputError, match=message):
        demo.run_demo(config, Invocation(Console(file=io.StringIO())))
    assert stages.calls == []


def test_a_second_layout_that_cannot_be_is_refused_before_anything_is_collected(
    stages: FakeStages, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    config.parallel.offload = "all"  # needs stage 3, which only the first layout has
    with pytest.raises(InputError, match=r"parallel\.offload"):
        demo.run_demo(config, Invocation(Console(file=io.StringIO())))
    assert stages.calls == []


def test_data_of_the_user_is_refused(stages: FakeStages, tmp_path: Path) -> None:
    config = settings(tmp_path)
    config.data.url = "shards"
    with pytest.raises(InputError, match=r"data\.url: the demo makes its own data"):
        demo.run_demo(config, Invocation(Console(file=io.StringIO())))
    assert stages.calls == []
