"""Loss on held-out episodes: against plain torch, in every layout, and without effect on the training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.config import MixtureSource
from data.errors import InputError
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex
from data.stream.loader import TokenStream
from pretrain.config import TrainingConfig, ValidationConfig
from pretrain.logs import set_up_logging
from pretrain.model.loss import LabelKind, label_kinds
from pretrain.model.transformer import Transformer, initialise
from pretrain.validation import SEED, Validation, weighted_loss
from tests.support import training_case
from tests.support.engine_case import logits_and_labels
from tests.support.loss_case import naive_distances
from tests.support.ranks import RankFailedError, run_ranks

BATCHES = 3


def dataset(folder: Path, splits: tuple[str, ...] = ("train", "val_ind", "val_ood")) -> str:
    """Three episodes in these splits; those of the last have another instruction."""
    url = training_case.write_dataset(folder)
    index = DatasetIndex.load(url)
    episodes = [
        dataclasses.replace(entry, split=split) for entry, split in zip(index.episodes, splits, strict=True)
    ]
    dataclasses.replace(index, episodes=EpisodeTable.of(episodes)).save(url)
    return url


def settings(folder: Path, url: str, layout: tuple[int, int, int] = (1, 1, 1)) -> TrainingConfig:
    config = training_case.settings(folder, url, layout)
    config.validation = ValidationConfig(every=2, batches=BATCHES)
    return config


def measure(config: TrainingConfig, times: int = 1) -> list[dict[str, float | None]]:
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.mesh import Mesh

    groups = ProcessGroups.create(Mesh(config.parallel.tensor, config.parallel.data))
    with Validation(config, groups) as validation:
        engine = Engine.build(config, groups)
        return [validation.measure(engine) for _ in range(times)]


def measure_with_torch(config: TrainingConfig, split: str) -> dict[str, float]:
    """The same values from the logits of all batches at once, in one process."""
    model = Transformer(config.model)
    initialise(model, config.trainer.seed)
    with TokenStream(config.data, config.trainer, SEED, split) as stream, torch.no_grad():
        batches = [batch for step in range(BATCHES) for batch in stream.micro_batches(step, 0, 1)]
        found = [logits_and_labels(model, batch) for batch in batches]
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    entropy = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    kinds = label_kinds(labels)
    weights = torch.where(kinds == LabelKind.IMAGE, config.loss.image_weight, 1.0).double()
    action = kinds == LabelKind.ACTION
    right = (logits.argmax(1) == labels).double()
    return {
        f"{split}/loss": float((weights * entropy).sum() / weights.sum()),
        f"{split}/loss_action": float(entropy[action].mean()),
        f"{split}/loss_image": float(entropy[kinds == LabelKind.IMAGE].mean()),
        f"{split}/accuracy_structure": float(right[kinds == LabelKind.STRUCTURE].mean()),
        f"{split}/action_l1": float(np.mean(naive_distances(logits[action], labels[action]))),
    }


def test_equal_to_plain_torch_and_in_every_layout(tmp_path: Path) -> None:
    url = dataset(tmp_path / "data")
    config = settings(tmp_path, url)
    expected = measure_with_torch(config, "val_ind") | measure_with_torch(config, "val_ood")
    alone = run_ranks(measure, 1, config, 2)[0]
    assert alone[0] == alone[1], "not the same batches every time"
    for name, value in expected.items():
        assert alone[0][name] == pytest.approx(value, abs=1e-5), name
    assert alone[0]["val_ind/loss"] != alone[0]["val_ood/loss"]
    for layout, micro_batch in (((2, 2, 3), None), ((1, 2, 1), 1), ((1, 4, 3), None)):
        other = settings(tmp_path, url, layout)
        other.trainer.micro_batch = micro_batch
        other.model.dropout = 0.3  # which validation leaves out
        for found in run_ranks(measure, layout[0] * layout[1], other):
            assert found[0] == pytest.approx(alone[0], abs=1e-5), layout


def test_the_action_losses_of_several_data_sets_are_told_apart(tmp_path: Path) -> None:
    config = settings(tmp_path, "")
    held_out, trained = dataset(tmp_path / "a"), training_case.write_dataset(tmp_path / "b", 1)
    config.data.sources = [MixtureSource(trained), MixtureSource(held_out)]
    ((found,),) = run_ranks(measure, 1, config)
    assert found["val_ind/loss_action/a"] == pytest.approx(found["val_ind/loss_action"])
    assert found["val_ind/loss_action/b"] is None, "the split has none of it"


def bits_of_training(config: TrainingConfig, every: int) -> tuple[list[Any], list[float | None]]:
    """Loss, norm and sums of six steps, and the validation losses after every `every` steps."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.mesh import Mesh

    config.validation.every = every
    groups = ProcessGroups.create(Mesh(config.parallel.tensor, config.parallel.data))
    curve, measured = [], []
    with (
        Validation(config, groups) as validation,
        TokenStream(config.data, config.trainer, config.trainer.seed) as stream,
    ):
        engine = Engine.build(config, groups)
        for step in range(6):
            batches = stream.micro_batches(step, groups.data_rank, groups.mesh.data)
            result = engine.step(batches, config.optim.lr)
            curve.append((result.loss.item(), result.gradient_norm.item(), result.sums.tolist()))
            if validation.is_due(engine.step_count):
                measured.append(validation.measure(engine)["val_ind/loss"])
                assert engine.module.training
    return curve, measured


@pytest.mark.parametrize("layout", [(1, 2, 3), (2, 1, 1)])
def test_a_training_with_validation_has_the_same_bits(tmp_path: Path, layout: tuple[int, int, int]) -> None:
    config = settings(tmp_path, dataset(tmp_path / "data"), layout)
    config.model.dropout = 0.2
    without = run_ranks(bits_of_training, 2, config, 0)[0]
    validated = run_ranks(bits_of_training, 2, config, 2)[0]
    assert validated[0] == without[0]
    assert len(validated[1]) == 3
    assert without[1] == []
    assert len(set(validated[1])) == 3, "the training changes the loss"


def open_validation(config: TrainingConfig) -> tuple[tuple[str, ...], list[bool]]:
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.mesh import Mesh

    set_up_logging(rank=0)
    with Validation(config, ProcessGroups.create(Mesh(1, 1))) as validation:
        return validation.splits, [validation.is_due(step) for step in range(1, 8)]


def test_an_empty_split_is_left_out_with_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = settings(tmp_path, dataset(tmp_path / "data", ("train", "train", "val_ind")))
    config.trainer.steps = 7
    splits, due = run_ranks(open_validation, 1, config)[0]
    assert splits == ("val_ind",)
    assert due == [False, True, False, True, False, True, True], "every second step and the last"
    assert "has no episode in split val_ood; it is left out" in capfd.readouterr().err
    config.validation.splits = ["val_ood"]
    assert run_ranks(open_validation, 1, config)[0] == ((), [False] * 7)


def test_no_validation_opens_nothing(tmp_path: Path) -> None:
    config = settings(tmp_path, str(tmp_path / "no data there"))
    config.validation.every = 0
    assert run_ranks(open_validation, 1, config)[0] == ((), [False] * 7)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("validation.every", -1, "validation.every=-1, expected at least 0"),
        ("validation.batches", 0, "validation.batches=0, expected at least 1"),
        (
            "validation.splits",
            ["test"],
            "validation.splits has 'test', expected some of train",
        ),
        ("validation.splits", ["val_ind", "val_ind"], "names a split twice"),
        ("model.max_positions", 4, "model.max_positions=4, but samples of split val_ind need"),
        ("model.vocabulary_size", 16_000, "model.vocabulary_size=16000, but samples of split val_ind need"),
        ("trainer.global_batch", 0, "trainer.global_batch is 0"),
    ],
)
def test_invalid_settings_are_refused_before_the_training(
    tmp_path: Path, setting: str, value: object, message: str
) -> None:
    config = settings(tmp_path, dataset(tmp_path / "data"))
    part, name = setting.split(".")
    setattr(getattr(config, part), name, value)
    with pytest.raises(RankFailedError, match=InputError.__name__) as caught:
        run_ranks(open_validation, 1, config)
    assert message in str(caught.value)


def test_the_weighted_loss_is_of_labels_not_of_kinds() -> None:
    sums = [[6.0, 2, 0, 0], [40.0, 8, 0, 0], [1.0, 1, 0, 0]]
    assert weighted_loss(sums, 0.25) == pytest.approx((6 + 10 + 1) / (2 + 2 + 1))
    assert weighted_loss([[0.0] * 4, [4.0, 2, 0, 0], [0.0] * 4], 0.0) is None
