"""Three embodiments in one training at TP2 x DP2: losses by data set, a policy of each, and their export."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.config import MixtureSource
from data.contracts import DEFAULT_EMBODIMENT, Embodiment, PackedBatch
from data.errors import InputError
from data.stream.loader import TokenStream
from data.tokens.action import decode, denormalise, encode
from data.tokens.vocabulary import ACTION_BIN_END, ACTION_BIN_START
from eval.config import ExportedConfig
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.interface import Observation
from eval.policy.source import PolicyReference
from pretrain.checkpoint.policy_files import describe_checkpoint
from pretrain.config import TrainingConfig
from pretrain.convert.exporting import export_weights
from pretrain.model.config import ActionHeadConfig
from pretrain.parallel.batch import MicroBatch
from pretrain.run_folder import RunFolder
from tests.support import training_case as case
from tests.support.ranks import run_ranks

ALOHA = Embodiment("aloha", tuple(f"joint_{i}" for i in range(14)), tuple(f"q_{i}" for i in range(14)))
DROID = Embodiment(
    "droid",
    ("x", "y", "z", "roll", "pitch", "yaw", "speed", "gripper"),
    ("x", "y", "z"),
    ("roll", "speed"),
)
ROBOTS = {"libero": DEFAULT_EMBODIMENT, "aloha": ALOHA, "droid": DROID}
CHUNKS = {"libero": 3, "aloha": 2, "droid": 4}
STEPS = 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    """A training on three data sets, with an action head."""
    folder = tmp_path_factory.mktemp("embodiments")
    config = case.settings(folder, "", (2, 2, 3))
    for seed, (name, robot) in enumerate(ROBOTS.items()):
        url = case.write_dataset(folder / name, seed, robot, states=True)
        config.data.sources.append(MixtureSource(url, chunk=None if name == "libero" else CHUNKS[name]))
    config.data.state = True
    config.trainer.steps, config.trainer.sequence_length, config.model.max_positions = STEPS, 160, 160
    config.model.action_head = ActionHeadConfig(time_horizon=4, action_dim=14)
    return config


@pytest.fixture(scope="module")
def run(config: TrainingConfig) -> RunFolder:
    return case.train(config)


@pytest.fixture(scope="module")
def checkpoint(run: RunFolder) -> Path:
    return run.checkpoints / f"step_{STEPS:08d}"


def label_counts(batches: list[PackedBatch]) -> Counter[str]:
    """Action labels by data set, counted token by token."""
    names, counts = list(ROBOTS), Counter[str]()
    for batch in batches:
        for row in range(len(batch.labels)):
            for segment, label in zip(batch.segments[row], batch.labels[row], strict=True):
                if ACTION_BIN_START <= label < ACTION_BIN_END:
                    counts[names[batch.sources[row, segment]]] += 1
    return counts


def test_the_losses_of_the_data_sets_sum_to_the_whole(config: TrainingConfig, run: RunFolder) -> None:
    with TokenStream(config.data, config.trainer, config.trainer.seed) as stream:
        assert [source.name for source in stream.sources] == list(ROBOTS)
        for step, line in enumerate(case.measured(run)):
            counts = label_counts(stream.micro_batches(step, 0, 1))
            losses = {name: line[f"loss_action/{name}"] for name in ROBOTS}
            assert len(set(losses.values())) == len(ROBOTS)
            total = sum(counts[name] * loss for name, loss in losses.items())
            assert total / counts.total() == pytest.approx(line["loss_action"], rel=1e-6)


def test_one_process_measures_the_same(config: TrainingConfig, run: RunFolder, tmp_path: Path) -> None:
    plain = replace(
        config,
        parallel=replace(config.parallel, tensor=1, data=1, zero_stage=1),
        trainer=replace(config.trainer, stop_after=1),
        run=replace(config.run, dir=str(tmp_path)),
    )
    first, alone = case.measured(run)[0], case.measured(case.train(plain))[0]
    for name in ("loss_action", *(f"loss_action/{name}" for name in ROBOTS)):
        assert alone[name] == pytest.approx(first[name], rel=1e-5)


def test_the_head_learns_the_numbers_that_a_sample_has(config: TrainingConfig) -> None:
    """Targets that count, and the centres of bins where these are asked for, sample by sample."""
    import torch

    from pretrain.model.loss import LossSettings

    with TokenStream(config.data, config.trainer, config.trainer.seed) as stream:
        (batch,) = stream.micro_batches(0, 0, 1)
        sources = stream.sources
    settings = LossSettings(reference_compatible=True, tokens_for_actions=False)
    micro = MicroBatch.of(batch, config.model, settings, torch.device("cpu"), torch.float32, len(sources))
    assert micro.actions is not None
    assert micro.actions.present is not None
    assert micro.sources is not None
    assert len(micro.sources.labels) == 0, "without tokens for actions there are no action labels"
    targets, present = micro.actions.targets.numpy(), micro.actions.present.numpy()
    assert micro.actions.values == int(present.sum()) == int(batch.action_present.sum())
    length, tokens = batch.segments.shape[1], batch.tokens.reshape(-1)
    for number, start in enumerate(batch.action_starts):
        row, column = divmod(int(start), length)
        source = sources[batch.sources[row, batch.segments[row, column]]]
        width, chunk = source.embodiment.action_dim, source.chunk
        answer = tokens[start : start + chunk * (width + 2)].reshape(chunk, width + 2)[:, 1:-1]
        assert encode(np.zeros((1, width)), source.action_ranges)[0, ~source.embodiment.present].tolist() == (
            answer[0, ~source.embodiment.present].tolist()
        )
        centres = 2 * (decode(answer, source.action_ranges) - source.action_ranges.minimum)
        centres = centres / np.subtract(source.action_ranges.maximum, source.action_ranges.minimum) - 1
        np.testing.assert_allclose(targets[number, :chunk, :width], centres, atol=1e-5)
        assert np.array_equal(present[number, :chunk, :width], np.tile(source.embodiment.present, (chunk, 1)))
        assert not present[number, chunk:].any()
        assert not present[number, :, width:].any()
        assert not targets[number, chunk:].any()
        assert not targets[number, :, width:].any()


def observed(robot: Embodiment) -> Observation:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (1, 1, 32, 32, 3), dtype=np.uint8)
    return Observation(0, "lift the cube", frames, random.uniform(-0.1, 0.1, robot.state_dim))


def policy(where: Path, name: str, files: ExportedConfig | None, decoder: str) -> CheckpointPolicy:
    assert decoder in ("discrete", "continuous")
    return CheckpointPolicy(
        where,
        "cpu",
        exported=files,
        decoder="discrete" if decoder == "discrete" else "continuous",
        embodiment=name,
        in_simulator=False,
    )


@pytest.mark.parametrize("decoder", ["discrete", "continuous"])
def test_each_policy_decodes_with_its_own_ranges_and_is_exported(
    checkpoint: Path, run: RunFolder, decoder: str, tmp_path: Path
) -> None:
    export_weights(checkpoint, tmp_path / "out", "float32", None, 10**9, lambda *_: None)
    (image,) = run.tokenizers.glob("*.safetensors")
    (text,) = run.tokenizers.glob("*.json")
    files = ExportedConfig(image_tokenizer=str(image), text_tokenizer=str(text))
    for source in describe_checkpoint(checkpoint).settings.sources:
        robot, name = source.embodiment, source.name
        assert (robot, source.chunk) == (ROBOTS[name], CHUNKS[name])
        acting = policy(checkpoint, name, None, decoder)
        seen = observed(robot)
        (actions,) = acting.act([seen])
        assert actions.shape == (CHUNKS[name], robot.action_dim)
        assert not actions[:, ~robot.present].any()
        decoded = acting._decoder.decode(acting.prompts([seen]))[0, : source.chunk, : robot.action_dim]
        to_units = decode if decoder == "discrete" else denormalise
        expected = to_units(decoded, source.action_ranges)[:, robot.present]
        np.testing.assert_array_equal(actions[:, robot.present], expected)
        if decoder == "discrete":
            zeros = encode(np.zeros((1, robot.action_dim)), source.action_ranges)
            assert np.array_equal(
                decoded[:, ~robot.present], np.tile(zeros, (CHUNKS[name], 1))[:, ~robot.present]
            )
        np.testing.assert_array_equal(policy(tmp_path / "out", name, files, decoder).act([seen])[0], actions)


def test_files_of_the_run_name_the_data_sets(run: RunFolder, checkpoint: Path) -> None:
    ranges = json.loads(run.action_ranges.read_text())
    assert list(ranges) == list(ROBOTS)
    assert ranges["aloha"] == {"minimum": [-2.0] * 14, "maximum": [2.0] * 14}
    record = PolicyReference(str(checkpoint)).record()
    assert record.settings is not None
    assert (record.settings["embodiment"], record.settings["chunk"]) == ("libero", 3)
    ranges["droid"]["maximum"][0] = 2.5
    changed = json.dumps(ranges)
    kept = run.action_ranges.read_text()
    try:
        run.action_ranges.write_text(changed)
        with pytest.raises(InputError, match=r"action_ranges\.json: of droid \[-3 to 2\.5, .* trained with"):
            describe_checkpoint(checkpoint)
    finally:
        run.action_ranges.write_text(kept)


@pytest.mark.parametrize(
    ("name", "in_simulator", "message"),
    [
        (
            "bridge",
            True,
            r"embodiment=bridge: .* trained on libero \(action of 7: .*aloha \(action of 14: ",
        ),
        (
            "aloha",
            True,
            r"embodiment=aloha: .* action of 14: .*; the simulators take action of 7: x, y",
        ),
        (None, False, r"trained on several data sets: libero \(.*; choose one by embodiment=NAME"),
    ],
)
def test_embodiments_that_do_not_fit_are_refused(
    checkpoint: Path, name: str | None, in_simulator: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        PolicyReference(str(checkpoint), embodiment=name, in_simulator=in_simulator).record()


def test_the_published_class_acts_as_one(checkpoint: Path, tmp_path: Path) -> None:
    def export(embodiment: str | None) -> None:
        out = tmp_path / "out"
        export_weights(checkpoint, out, None, None, 1, lambda *_: None, "published", embodiment)

    with pytest.raises(InputError, match=r"its class knows one embodiment, .*; choose one by embodiment="):
        export(None)
    with pytest.raises(InputError, match="predicts 4 actions of 14 numbers, libero has 3 of 7"):
        export("libero")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (ActionHeadConfig(time_horizon=3, action_dim=14), "time_horizon=3, but data.sources[2].chunk=4"),
        (ActionHeadConfig(time_horizon=4), "action_dim=7, but the data has 14 numbers in the widest action"),
    ],
)
def test_a_head_of_another_size_is_refused(
    config: TrainingConfig, head: ActionHeadConfig, message: str, tmp_path: Path
) -> None:
    wrong = replace(
        config,
        model=replace(config.model, action_head=head),
        parallel=replace(config.parallel, tensor=1, data=1, zero_stage=1),
        run=replace(config.run, dir=str(tmp_path)),
    )
    (found,) = run_ranks(case.try_train, 1, wrong)
    assert message in found
