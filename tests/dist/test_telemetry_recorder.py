"""What the trainer reports about a run: every metric, validation, stragglers, traces."""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from data.stream.setup import make_plan
from pretrain.checkpoint.load import load_metadata
from pretrain.config import TrainingConfig
from pretrain.model.loss import TOKEN_KINDS
from pretrain.phases import PHASES
from pretrain.run_folder import RunFolder
from pretrain.telemetry.norms import GROUPS
from pretrain.telemetry.sinks import read_metrics
from tests.dist.test_validation import dataset
from tests.support import training_case as case
from tests.support.ranks import run_ranks

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"
SPLITS = ("val_ind", "val_ood")
SLOW_SECONDS = 0.5  # of a virtual clock

WITHOUT_HEAD = [group for group in GROUPS if group != "action_head"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dataset(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def run(url: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Six steps at tensor 2 x data 2 with validation every third and a trace of steps 2 and 3."""
    config = case.settings(tmp_path_factory.mktemp("run"), url, (2, 2, 3))
    config.validation.every, config.validation.batches = 3, 1
    config.telemetry.profile, config.telemetry.profile_steps = True, [2, 3]
    config.checkpointing.every = 3
    return case.train(config)


def events(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder.metrics) if record.get("event") == name]


def documented(section: str) -> set[str]:
    """The names in the table of a section, with placeholders replaced."""
    text = DOCUMENT.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    names = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    choices = {
        "<kind>": [kind.name.lower() for kind in TOKEN_KINDS],
        "<group>": WITHOUT_HEAD,
        "<split>": list(SPLITS),
        "<source>": ["shards"],
    }
    for placeholder, values in choices.items():
        names = {name.replace(placeholder, value) for name in names for value in values}
    return names


def test_written_metrics_are_the_documented_ones(run: RunFolder) -> None:
    for record in case.measured(run):
        assert set(record) == documented("A step")
    validated = events(run, "validation")
    assert [record["step"] for record in validated] == [3, 6]
    for record in validated:
        assert set(record) - {"event", "step"} == documented("Validation")
    names = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text().split("## Other events")[1], re.MULTILINE))
    recorded = {record["event"] for record in read_metrics(run.metrics) if "event" in record}
    assert recorded - {"validation"} <= names
    assert "profile" in recorded


def test_the_numbers_of_a_line_agree(run: RunFolder) -> None:
    for record in case.measured(run):
        parts = [record[f"gradient_norm/{group}"] for group in WITHOUT_HEAD]
        assert math.hypot(*parts) == pytest.approx(record["gradient_norm"], rel=1e-4)
        assert 0 < record["rank_time/p50"] <= record["rank_time/p90"] <= record["rank_time/max"]
        assert 0 <= record["peer_wait"] < record["step_time"]
        assert 0 <= record["rank_time/slowest_rank"] < 4
        assert 0.05 < record["memory/host_resident"] < 24
        assert record["memory/device_allocated"] is None
        assert record["skipped_steps"] == 0
    stalls = [record["checkpoint_stall"] for record in case.measured(run)]
    assert [stall > 0 for stall in stalls] == [False, False, False, True, False, False]


def test_epochs_are_those_of_the_plan(run: RunFolder, url: str) -> None:
    config = case.settings(run.path.parent, url)
    plan = make_plan(config.data, config.trainer, config.trainer.seed)
    for record in case.measured(run):
        epochs = {name: value for name, value in record.items() if name.startswith("epoch/")}
        assert epochs == {f"epoch/{name}": value for name, value in plan.epochs(record["step"]).items()}
        assert all(value > 0 for value in epochs.values())


def test_validation_and_norms_reach_the_summary(run: RunFolder) -> None:
    summary = run.read_summary()
    newest = events(run, "validation")[-1]
    assert summary["validation"] == {name: value for name, value in newest.items() if name != "event"}
    assert 0 < newest["val_ind/loss"] != newest["val_ood/loss"]
    assert summary["norms"]["parameter_norm/head"] == case.measured(run)[-1]["parameter_norm/head"]
    assert summary["tflops_per_rank"] > 0


def test_telemetry_changes_no_bit_of_the_training(run: RunFolder, url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, (2, 2, 3))
    config.trainer.log_every = 6
    assert case.measured(case.train(config))[-1]["loss"] == case.measured(run)[-1]["loss"]


def test_the_trace_holds_the_phases_of_the_chosen_steps(run: RunFolder) -> None:
    (event,) = events(run, "profile")
    path = run.path / "profile" / "steps_00000002_00000003.json"
    assert [event["trace"], event["step"]] == [str(path), 3]
    trace = json.loads(path.read_text())["traceEvents"]
    spans = {name: [e for e in trace if e.get("name") == name and e.get("ph") == "X"] for name in PHASES}
    # Forward passes: two steps, and the validation of two splits.
    counts = {name: len(found) for name, found in spans.items()}
    assert counts == {
        "data": 2,
        "forward": 4,
        "backward": 2,
        "optimizer": 2,
        "checkpoint": 1,
        "validation": 1,
    }
    assert all(span["dur"] > 0 for found in spans.values() for span in found)
    assert any("mm" in str(e.get("name")) for e in trace), "no operator was traced"


def _slow_second_rank(config: TrainingConfig) -> None:
    """Rank 1 is slow in its forward pass, and rank 0 waits for it in the next collective.

    Time is a virtual clock in each rank, which nothing else moves: neither machine nor load matters.
    """
    from pretrain.parallel.engine import Engine
    from pretrain.telemetry import recorder

    slow, now, behind = os.environ["RANK"] == "1", [0.0], [0.0]
    forward, wait = Engine._forward, dist.Work.wait

    def slow_forward(self: Engine, batch: Any, normaliser: Any) -> Any:
        now[0] += SLOW_SECONDS if slow else 0.0
        behind[0] += 0.0 if slow else SLOW_SECONDS
        return forward(self, batch, normaliser)

    def wait_for_peer(work: dist.Work, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is threading.main_thread():  # not the one that writes checkpoints
            now[0], behind[0] = now[0] + behind[0], 0.0
        return wait(work, *args, **kwargs)

    time.perf_counter = lambda: now[0]
    recorder.peak_flops = lambda *_: 1e12  # measured by the clock
    Engine._forward = slow_forward
    dist.Work.wait = wait_for_peer  # type: ignore[method-assign]
    assert case.try_train(config) == ""


def test_a_straggler_is_reported_once(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, (1, 2, 3))
    config.trainer.steps = 5
    run_ranks(_slow_second_rank, 2, config)
    folder = RunFolder.of(config.run)
    (event,) = events(folder, "straggler")
    expected = {"step": 3, "rank": 1, "host": os.uname().nodename, "data_wait": 0.0}
    assert event == {"event": "straggler", "seconds_above_median": SLOW_SECONDS / 2, **expected}
    for record in case.measured(folder):
        times = [record[f"rank_time/{name}"] for name in ("p50", "p90", "max")]
        assert times == pytest.approx([SLOW_SECONDS / 2, 0.9 * SLOW_SECONDS, SLOW_SECONDS])
        assert record["rank_time/slowest_rank"] == 1
        assert record["step_time"] == SLOW_SECONDS
        assert record["peer_wait"] == SLOW_SECONDS / 2, "mean over the ranks"


def test_checkpoints_know_the_wandb_run(run: RunFolder) -> None:
    identity = (run.path / "wandb" / "run_id").read_text().strip()
    assert load_metadata(run.checkpoints / "step_00000006")["wandb_run"] == identity


def test_torchrun_goes_on_with_the_same_wandb_run(url: str, tmp_path: Path) -> None:
    given = [f"run.dir={tmp_path}", "run.name=r", f"data.url={url}", "data.history=1", "data.chunk=3"]
    given += ["trainer.steps=2", "trainer.sequence_length=256", "trainer.precision=fp32", "model=tiny"]
    given += ["model.layers=1", "model.hidden_size=32", "model.ffn_size=48", "optim=scratch"]
    identities = []
    for stop in (1, 2):
        assert run_ranks(case.run_main, 1, [*given, f"trainer.stop_after={stop}"]) == [0]
        identities.append((tmp_path / "r" / "wandb" / "run_id").read_text())
        stored = load_metadata(tmp_path / "r" / "checkpoints" / f"step_{stop:08d}")
        assert stored["wandb_run"] == identities[-1]
    assert identities[0] == identities[1]
    assert len(list(tmp_path.glob(f"r/wandb/offline-run-*-{identities[0]}/*.wandb"))) == 2
