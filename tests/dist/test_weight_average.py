"""The average of the weights (`optim.ema`): its values at each layout, in checkpoints and across a resume."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from data.errors import InputError
from pretrain.checkpoint.location import open_checkpoint, step_folder
from pretrain.checkpoint.manifest import EMA, Manifest, StoredAverage
from pretrain.checkpoint.weights import load_weights
from pretrain.config import Offload, OptimizerName, TrainingConfig
from pretrain.model.transformer import Transformer
from tests.support import checkpoint_case as case
from tests.support.ranks import run_ranks

DECAY, STEPS, SKIPPED = 0.4, 10, 4  # the warm-up is below this decay for its first five updates
SAVED = 6
ROUNDING = 3e-7  # of a few sums of fp32 weights that are at most 2


def settings(layout: case.Layout, offload: Offload = "none", name: OptimizerName = "adamw") -> TrainingConfig:
    config = case.config(layout)
    config.parallel.offload, config.optim.name, config.optim.ema = offload, name, DECAY
    return config


LAYOUTS = {
    "TP1xDP1-ZeRO0": settings((1, 1, 0)),
    "TP1xDP2-ZeRO0": settings((1, 2, 0)),
    "TP1xDP2-ZeRO1": settings((1, 2, 1)),
    "TP1xDP2-ZeRO3": settings((1, 2, 3)),
    "TP2xDP2-ZeRO0": settings((2, 2, 0)),
    "TP2xDP1-ZeRO1-Lion": settings((2, 1, 1), name="lion"),
    "TP2xDP2-ZeRO3": settings((2, 2, 3)),
    "TP1xDP2-ZeRO2-offload": settings((1, 2, 2), "optimizer"),
    "TP1xDP2-ZeRO3-offload": settings((1, 2, 3), "all"),
}


def _ranks(config: TrainingConfig) -> int:
    return config.parallel.tensor * config.parallel.data


def train_on(engine: case.Engine, root: Path, last: int) -> None:
    """Save now and after every step up to the last; the update of one step is skipped."""
    writer = case.CheckpointWriter(root, engine)
    writer.save(engine.step_count, {})
    while engine.step_count < last:
        skip = torch.tensor(engine.step_count == SKIPPED)
        batch = case.batch(engine.step_count, engine.groups.data_rank, engine.groups.mesh.data)
        result = engine.step([batch], case.LEARNING_RATE, lambda loss, norm, skip=skip: skip)
        assert bool(result.skipped) == bool(skip)
        writer.save(engine.step_count, {})
    writer.wait()


def train_and_save(config: TrainingConfig, root: Path) -> None:
    train_on(case.build(config), root, STEPS)


def resume_and_save(config: TrainingConfig, checkpoint: Path, root: Path) -> list[str]:
    """Go on from a checkpoint to the last step; return what this rank has logged of the load."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("pretrain.checkpoint.load")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    engine = case.build(config)
    case.load(checkpoint, engine)
    train_on(engine, root, STEPS)
    return lines


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By layout the folder of a run with a checkpoint of every step, from 0 on."""
    roots = {name: tmp_path_factory.mktemp(name) for name in LAYOUTS}
    for name, config in LAYOUTS.items():
        run_ranks(train_and_save, _ranks(config), config, roots[name])
    return roots


def reference(root: Path, first: int, last: int) -> Iterator[dict[str, Tensor]]:
    """torch's own average of a run's trained weights, which begins with those of step `first`, by step."""

    def average(averaged: Tensor, current: Tensor, averaged_before: Tensor | int) -> Tensor:
        updates = int(averaged_before) - 1  # torch counts the copy that it starts with
        decay = min(DECAY, (1 + updates) / (10 + updates))
        return decay * averaged + (1 - decay) * current

    model = Transformer(LAYOUTS["TP1xDP1-ZeRO0"].model).double()
    averaged = AveragedModel(model, avg_fn=average)
    for step in range(first, last + 1):
        model.load_state_dict(load_weights(step_folder(root, step)))
        if step - 1 != SKIPPED:
            averaged.update_parameters(model)
        yield {name: values.clone() for name, values in averaged.module.state_dict().items()}


def averaged(checkpoint: Path) -> dict[str, Tensor]:
    return load_weights(checkpoint, choice="averaged")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, values in found.items():
        torch.testing.assert_close(values.double(), expected[name].double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_average_is_torchs_at_every_step_and_layout(runs: dict[str, Path], layout: str) -> None:
    for step, expected in enumerate(reference(runs[layout], 0, STEPS)):
        checkpoint = step_folder(runs[layout], step)
        assert_same(averaged(checkpoint), expected, ROUNDING)
        updates = step - (step > SKIPPED)
        assert Manifest.read(open_checkpoint(checkpoint)).average == StoredAverage(DECAY, updates)
    trained = load_weights(step_folder(runs[layout], STEPS))
    assert all(not torch.equal(trained[name], values) for name, values in averaged(checkpoint).items())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("TP1xDP2-ZeRO3", "TP2xDP2-ZeRO0"),
        ("TP2xDP2-ZeRO0", "TP1xDP2-ZeRO3-offload"),
        ("TP2xDP2-ZeRO3", "TP1xDP2-ZeRO1"),
        ("TP1xDP2-ZeRO2-offload", "TP2xDP2-ZeRO3"),
    ],
)
def test_average_goes_on_at_another_layout(
    runs: dict[str, Path], before: str, after: str, tmp_path: Path
) -> None:
    config, checkpoint = LAYOUTS[after], step_folder(runs[before], SAVED)
    lines = run_ranks(resume_and_save, _ranks(config), config, checkpoint, tmp_path)
    assert lines == [[]] * _ranks(config)
    loaded = averaged(step_folder(tmp_path, SAVED))
    assert all(torch.equal(loaded[name], values) for name, values in averaged(checkpoint).items())
    # The reference follows the first run up to the checkpoint, then the second: one average, uninterrupted.
    for step in range(SAVED):
        (tmp_path / f"step_{step:08d}").symlink_to(step_folder(runs[before], step))
    *_, expected = reference(tmp_path, 0, STEPS)
    assert_same(averaged(step_folder(tmp_path, STEPS)), expected, ROUNDING)
    # The trainings themselves differ by rounding, which AdamW enlarges where gradients are tiny.
    assert_same(averaged(step_folder(tmp_path, STEPS)), averaged(step_folder(runs[before], STEPS)), 1e-3)


def test_checkpoint_without_average_starts_it_from_its_weights(tmp_path: Path) -> None:
    plain, config = case.config((1, 2, 3)), LAYOUTS["TP2xDP1-ZeRO1-Lion"]
    plain.optim.name = "lion"
    run_ranks(train_and_save, 2, plain, tmp_path / "plain")
    checkpoint = step_folder(tmp_path / "plain", SAVED)
    lines = run_ranks(resume_and_save, 2, config, checkpoint, tmp_path / "averaged")
    assert lines[1] == []
    assert len(lines[0]) == 1
    assert "optim.ema=0.4 starts an average of the weights from the trained ones there" in lines[0][0]
    first = step_folder(tmp_path / "averaged", SAVED)
    assert_same(averaged(first), load_weights(checkpoint), 0)
    assert Manifest.read(open_checkpoint(first)).average == StoredAverage(DECAY, 0)
    *_, expected = reference(tmp_path / "averaged", SAVED, STEPS)
    assert_same(averaged(step_folder(tmp_path / "averaged", STEPS)), expected, ROUNDING)


def test_run_without_average_ignores_one(runs: dict[str, Path], tmp_path: Path) -> None:
    plain, checkpoint = case.config((1, 2, 1)), step_folder(runs["TP1xDP2-ZeRO1"], SAVED)
    lines = run_ranks(resume_and_save, 2, plain, checkpoint, tmp_path)
    assert lines[1] == []
    assert len(lines[0]) == 1
    assert "its average of the weights (decay 0.4) is not read, with optim.ema=null" in lines[0][0]
    for step in range(SAVED, STEPS + 1):
        with_average = Manifest.read(open_checkpoint(step_folder(runs["TP1xDP2-ZeRO1"], step)))
        without = Manifest.read(open_checkpoint(step_folder(tmp_path, step)))
        assert without.average is None
        assert not any(EMA in name for name in [*without.tensors, *without.files])
        assert _checksums(without) == _checksums(with_average)  # not a bit of the training differs


def _checksums(manifest: Manifest) -> dict[str, str]:
    """Of the files with weights, moments and chunk table, without the attempt in their names."""
    return {
        name.replace(manifest.attempt, ""): file.sha256
        for name, file in manifest.files.items()
        if f".{EMA}" not in name
    }


def start_and_save(config: TrainingConfig, checkpoint: Path, root: Path) -> None:
    from pretrain.checkpoint.load import load_initial_weights

    engine = case.build(config)
    load_initial_weights(checkpoint, engine)
    train_on(engine, root, 2)


def test_new_run_starts_its_average_from_trained_weights(runs: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = step_folder(runs["TP2xDP2-ZeRO3"], STEPS)
    run_ranks(start_and_save, 2, LAYOUTS["TP1xDP2-ZeRO3"], checkpoint, tmp_path)
    assert_same(averaged(step_folder(tmp_path, 0)), load_weights(checkpoint), 0)
    *_, expected = reference(tmp_path, 0, 2)
    assert_same(averaged(step_folder(tmp_path, 2)), expected, ROUNDING)


def go_back(config: TrainingConfig, root: Path) -> bool:
    """Whether the average of a checkpoint is back after it was loaded into the engine that went on."""
    from pretrain.checkpoint.fragments import fragments

    engine = case.build(config)
    writer = case.CheckpointWriter(root, engine)
    case.steps(engine, 3)
    kept = [part.states[EMA].clone() for part in fragments(engine)]
    writer.save(3, {})
    case.steps(engine, 6)
    writer.wait()
    changed = any(
        not torch.equal(part.states[EMA], values)
        for part, values in zip(fragments(engine), kept, strict=True)
    )
    case.load(step_folder(root, 3), engine)
    average = engine.average
    assert average is not None
    back = all(
        torch.equal(part.states[EMA], values) for part, values in zip(fragments(engine), kept, strict=True)
    )
    return changed and back and int(average.updates) == 3


def test_rollback_restores_the_average(tmp_path: Path) -> None:
    assert run_ranks(go_back, 2, LAYOUTS["TP1xDP2-ZeRO3"], tmp_path) == [True, True]


def test_weights_that_a_checkpoint_lacks_are_refused(tmp_path: Path) -> None:
    run_ranks(train_and_save, 1, case.config((1, 1, 0)), tmp_path)
    with pytest.raises(InputError, match=r"weights=averaged: .* has no average .* give weights=trained"):
        averaged(step_folder(tmp_path, STEPS))
    found = load_weights(step_folder(tmp_path, STEPS), choice="auto")
    assert_same(found, load_weights(step_folder(tmp_path, STEPS)), 0)
