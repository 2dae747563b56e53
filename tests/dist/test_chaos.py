"""A run whose ranks are killed repeatedly ends with the loss curve of an undisturbed one."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from data.storage.store import open_store
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.verification import find_damage
from pretrain.config import ParallelConfig, TrainingConfig, ZeroStage
from pretrain.run_folder import RunFolder
from pretrain.telemetry.sinks import read_metrics
from tests.support import training_case as case
from tests.support.chaos import Kill, train_until_killed
from tests.support.ranks import RankFailedError, run_ranks

DIED = r"rank \d+ died|Connection (closed|reset) by peer|Broken pipe"
STEPS = 14  # the kills leave time for about six
KILLS = ("start", "save", "step", "save", "save", "start", "save", "copy", "save", "save") * 2
CURVE = ("step", "loss", "loss_action", "loss_image", "gradient_norm")
LAYOUT = (1, 2, 3)
LAYOUTS = ((1, 2, 3), (2, 1, 1), (1, 1, 2), (1, 2, 0), (2, 1, 3))


@dataclass(frozen=True, slots=True)
class Chaos:
    """Result of a disturbed run.

    Attributes:
        folder: Folder of the run.
        torn: Number of kills that left an unfinished save.
    """

    folder: RunFolder
    torn: int


def _settings(tmp_path: Path, url: str) -> TrainingConfig:
    config = case.settings(tmp_path, url, LAYOUT)
    config.trainer.steps, config.checkpointing.every, config.checkpointing.keep_last = STEPS, 2, 2
    config.telemetry.wandb = "disabled"
    return config


def _disturbed(
    config: TrainingConfig, kills: tuple[str, ...], layouts: tuple[tuple[int, int, int], ...]
) -> Chaos:
    """Train with a rank killed in each start but the last."""
    draws, folder, torn = random.Random(7), RunFolder.of(config.run), 0
    place = CheckpointLocation(folder.checkpoints)
    for number, occasion in enumerate([*kills, None]):
        tensor, data, stage = layouts[number % len(layouts)]
        config = replace(
            config, parallel=ParallelConfig(tensor=tensor, data=data, zero_stage=cast(ZeroStage, stage))
        )
        if occasion is None:
            assert run_ranks(train_until_killed, tensor * data, config, None) == [""] * tensor * data
            break
        kill, before = Kill.draw(draws, tensor * data, occasion), _unfinished(place)
        # A peer may notice that its connection broke before the harness notices who died.
        with pytest.raises(RankFailedError, match=DIED):
            _train_killed(config, kill)
        torn += bool(_unfinished(place) - before)
    return Chaos(folder, torn)


def _train_killed(config: TrainingConfig, kill: Kill) -> None:
    """Train with a kill; an end without it says what the ranks returned."""
    messages = run_ranks(train_until_killed, config.parallel.tensor * config.parallel.data, config, kill)
    raise AssertionError(f"{kill}: no rank died, {messages}")


def _unfinished(place: CheckpointLocation) -> set[Path]:
    """Files of checkpoints that are not committed; each attempt's names are its own."""
    steps = place.scan().items() if Path(place.url).exists() else ()
    return {path for step, whole in steps if not whole for path in Path(place.checkpoint_url(step)).iterdir()}


def _assert_nothing_torn(folder: RunFolder) -> None:
    """Two checkpoints are complete, and there are no other files."""
    place = CheckpointLocation(folder.checkpoints)
    assert place.scan() == {STEPS - 2: True, STEPS: True}
    for step in place.steps():
        store = open_store(place.checkpoint_url(step))
        manifest = Manifest.read(store)
        assert find_damage(store, manifest.files) == []
        beside = {path.name for path in Path(place.checkpoint_url(step)).iterdir()} - manifest.files.keys()
        assert beside == {"READY", f"manifest-{manifest.attempt}.json"}


def _curve(folder: RunFolder) -> list[list[float]]:
    return [[record[key] for key in CURVE] for record in case.measured(folder)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return case.write_dataset(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def undisturbed(url: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return case.train(_settings(tmp_path_factory.mktemp("undisturbed"), url))


def test_twenty_kills_change_nothing(undisturbed: RunFolder, url: str, tmp_path: Path) -> None:
    assert len(KILLS) == 20
    chaos = _disturbed(_settings(tmp_path, url), KILLS, (LAYOUT,))
    assert chaos.torn >= 10, "kills in the middle of a save"
    assert _curve(chaos.folder) == _curve(undisturbed), "bit for bit"
    assert chaos.folder.read_summary()["tokens"] == undisturbed.read_summary()["tokens"]
    _assert_nothing_torn(chaos.folder)
    cleaned = [e for e in read_metrics(chaos.folder.metrics) if e.get("event") == "checkpoint_cleaned"]
    assert cleaned, "unfinished saves are reported"
    assert all(re.fullmatch(r"step_\d{8}", name) for event in cleaned for name in event["removed"])


def test_kills_and_another_layout_at_each_start(undisturbed: RunFolder, url: str, tmp_path: Path) -> None:
    chaos = _disturbed(
        _settings(tmp_path, url),
        ("save", "step", "save", "copy", "save", "step", "save", "copy", "save"),
        LAYOUTS,
    )
    assert chaos.torn >= 4, "kills in the middle of a save"
    for ours, theirs in zip(_curve(chaos.folder), _curve(undisturbed), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=0)
    _assert_nothing_torn(chaos.folder)
