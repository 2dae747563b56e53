from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.config import DataConfig
from data.errors import InputError
from data.stream.samples import action_prompt
from data.tokens.action import ACTION_MAX, ACTION_MIN, decode
from data.tokens.image_block import image_block
from data.tokens.prompt_text import action_text
from eval.config import ExportedConfig
from eval.policy import loaded_model as model_module
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.interface import Observation
from eval.policy.source import PolicyReference
from eval.rollout.episode import run_episode
from pretrain.checkpoint.manifest import Manifest
from pretrain.config import RunConfig, TrainingConfig
from pretrain.convert.chameleon import hugging_face_config
from pretrain.convert.exporting import ARCHITECTURE
from pretrain.model.generate import decode_action_chunk
from pretrain.model.transformer import Transformer, initialise
from pretrain.policy_settings import PolicySettings
from pretrain.settings import to_yaml
from pretrain.sources import libero_source
from tests.support.exported_policy import CHUNK, HISTORY, POLICY_MODEL
from tests.support.fake_simulator import FakeSimulator
from tests.support.tokenizers import shipped_image_tokenizer, shipped_text_tokenizer


@pytest.fixture
def network() -> Transformer:
    made = Transformer(POLICY_MODEL)
    initialise(made, seed=0)
    return made.eval()


@pytest.fixture
def checkpoint(tmp_path: Path, network: Transformer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose checkpoint's weights are those of `network`."""
    data = DataConfig(url="shards", chunk=CHUNK, history=HISTORY, cameras=["wrist"])
    config = TrainingConfig(run=RunConfig(name="run"), model=POLICY_MODEL, data=data)
    folder = tmp_path / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    shipped_text_tokenizer().save(tmp_path / "tokenizers")
    shipped_image_tokenizer().save(tmp_path / "tokenizers" / "image_tokenizer.safetensors")
    write_ranges(tmp_path, ACTION_MIN, ACTION_MAX)
    write_manifest(folder, policy_settings(data).to_json())
    monkeypatch.setattr(model_module, "load_weights", lambda path, choice: dict(network.state_dict()))
    return folder


def policy_settings(data: DataConfig) -> PolicySettings:
    image = shipped_image_tokenizer()
    return PolicySettings.of(data, 64, (libero_source(data),), image.sha256, shipped_text_tokenizer().sha256)


def write_manifest(folder: Path, policy: Any) -> None:
    """A committed checkpoint without files; `policy` None: of an earlier version."""
    Manifest(7, 7, {} if policy is None else {"policy": policy}, {}, {}).write(folder)


def write_ranges(run: Path, minimum: Sequence[float], maximum: Sequence[float]) -> None:
    ranges = {"minimum": list(minimum), "maximum": list(maximum)}
    (run / "action_ranges.json").write_text(json.dumps(ranges))


def observation(seed: int, frames: int) -> Observation:
    rng = np.random.default_rng(seed)
    views = rng.integers(0, 256, (frames, 1, 64, 64, 3), dtype=np.uint8)
    return Observation(seed, f"lift cube {seed}", views)


def observed(policy: CheckpointPolicy) -> tuple[object, ...]:
    return policy.chunk, policy.history, policy.cameras, policy.pixels, policy.uses_state


def test_policy_decodes_the_networks_output_for_each_environment(
    checkpoint: Path, network: Transformer
) -> None:
    policy = CheckpointPolicy(checkpoint, device="cpu")
    assert observed(policy) == (CHUNK, HISTORY, ("wrist",), 64, False)
    observations = [observation(1, 1), observation(2, 2)]
    actions = policy.act(observations)
    assert actions.shape == (2, CHUNK, 7)
    assert (actions >= ACTION_MIN).all()
    assert (actions <= ACTION_MAX).all()
    text, image = shipped_text_tokenizer(), shipped_image_tokenizer()
    for number, seen in enumerate(observations):
        blocks = [image_block(codes, 64) for codes in image.encode(seen.frames[:, 0])]
        prompt = action_prompt(text.encode(action_text(seen.instruction)), blocks)
        bins = decode_action_chunk(network, [prompt], CHUNK)[0]
        np.testing.assert_array_equal(actions[number], decode(bins))


def test_actions_use_the_action_ranges_of_the_run(checkpoint: Path) -> None:
    before = CheckpointPolicy(checkpoint, device="cpu").act([observation(1, 1)])
    path = checkpoint.parents[1] / "action_ranges.json"
    low, high = np.array(ACTION_MIN), np.array(ACTION_MAX)
    write_ranges(checkpoint.parents[1], (low / 2).tolist(), (high / 2).tolist())
    write_manifest(checkpoint, None)
    after = CheckpointPolicy(checkpoint, device="cpu").act([observation(1, 1)])
    np.testing.assert_allclose(after, before / 2, atol=1e-6)
    path.write_text('{"minimum": [0, 1]}')
    with pytest.raises(InputError, match=r"action_ranges\.json: maximum is nothing"):
        CheckpointPolicy(checkpoint, device="cpu")


def test_policy_runs_an_episode(checkpoint: Path) -> None:
    simulator = FakeSimulator()
    result = run_episode(simulator, CheckpointPolicy(checkpoint, device="cpu"), 0, horizon=7)
    assert (result.steps, result.error) == (7, None)
    assert [step for step, _, _ in simulator.renders] == [0, 2, 3, 5, 6]


def test_missing_tokenizer_is_named(checkpoint: Path) -> None:
    (checkpoint.parents[1] / "tokenizers" / "image_tokenizer.safetensors").unlink()
    with pytest.raises(InputError, match=r"found 0 files .*safetensors.* image tokenizer"):
        CheckpointPolicy(checkpoint)


def test_missing_action_ranges_are_named(checkpoint: Path) -> None:
    (checkpoint.parents[1] / "action_ranges.json").unlink()
    with pytest.raises(InputError, match=r"action_ranges\.json: the action ranges .*; copy it there"):
        CheckpointPolicy(checkpoint, device="cpu")


def test_weights_of_another_model_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"model.norm.weight": torch.ones(33)}
    monkeypatch.setattr(model_module, "load_weights", lambda path, choice: other)
    with pytest.raises(InputError, match="tensors do not fit"):
        CheckpointPolicy(checkpoint)


def test_folder_without_a_run_is_explained(tmp_path: Path) -> None:
    for folder in (tmp_path / "checkpoints" / "step_00000001", tmp_path, Path("/")):
        with pytest.raises(InputError, match=r"no checkpoint of a run there .*expected runs/<name>"):
            CheckpointPolicy(folder)


def test_settings_without_a_section_are_explained(checkpoint: Path) -> None:
    (checkpoint.parents[1] / "config.yaml").write_text("run: {name: r}\n")
    with pytest.raises(InputError, match=r"config\.yaml data"):
        CheckpointPolicy(checkpoint)


def test_actions_in_other_units_than_the_simulators_take_are_refused(checkpoint: Path) -> None:
    write_ranges(checkpoint.parents[1], [-1.0] * 7, [1.0] * 3 + [30.0] + [1.0] * 3)
    write_manifest(checkpoint, None)
    with pytest.raises(InputError, match="from -1 to 30 in dimension 3, the simulators take -1 to 1"):
        CheckpointPolicy(checkpoint, device="cpu")


@pytest.fixture
def exported(tmp_path: Path, network: Transformer) -> Path:
    """The same weights in transformers' layout; the tokenizers are elsewhere."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(hugging_face_config(POLICY_MODEL, "float32", None, ARCHITECTURE))
    )
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def test_exported_weights_act_like_the_checkpoint(checkpoint: Path, exported: Path) -> None:
    tokenizers = checkpoint.parents[1] / "tokenizers"
    settings = ExportedConfig(
        image_tokenizer=str(tokenizers / "image_tokenizer.safetensors"),
        text_tokenizer=str(tokenizers / "text_tokenizer.json"),
        history=HISTORY,
        chunk=CHUNK,
        cameras=["wrist"],
    )
    policy = CheckpointPolicy(exported, device="cpu", exported=settings)
    assert observed(policy) == (CHUNK, HISTORY, ("wrist",), 64, False)
    observations = [observation(1, 1), observation(2, 2)]
    expected = CheckpointPolicy(checkpoint, device="cpu").act(observations)
    np.testing.assert_array_equal(policy.act(observations), expected)


def test_exported_weights_need_tokenizers(exported: Path) -> None:
    with pytest.raises(InputError, match=r"no image tokenizer .*add exported.image_tokenizer=FILE"):
        CheckpointPolicy(exported)
    settings = ExportedConfig(image_tokenizer="image.safetensors")
    with pytest.raises(InputError, match=r"no text tokenizer at .*tokenizer.json; add exported.text_tok"):
        CheckpointPolicy(exported, exported=settings)


def test_identity_changes_with_the_weights(checkpoint: Path, exported: Path) -> None:
    first = PolicyReference(str(checkpoint)).identity()
    write_manifest(checkpoint, None)
    assert PolicyReference(str(checkpoint)).identity() != first
    first = PolicyReference(str(exported)).identity()
    assert PolicyReference(str(exported)).identity() == first
    assert PolicyReference(str(exported), exported=ExportedConfig(chunk=9)).identity() != first
    with (exported / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert PolicyReference(str(exported)).identity() != first


@pytest.mark.parametrize("kind", ["image", "text", "ranges"])
def test_other_tokenizers_and_ranges_than_those_of_the_training_are_refused(
    kind: str, checkpoint: Path, network: Transformer
) -> None:
    run = checkpoint.parents[1]
    path = {
        "image": run / "tokenizers/image_tokenizer.safetensors",
        "text": run / "tokenizers/text_tokenizer.json",
        "ranges": run / "action_ranges.json",
    }[kind]
    if kind == "ranges":
        write_ranges(run, ACTION_MIN, [*ACTION_MAX[:6], 0.5])
    else:
        path.write_bytes(path.read_bytes() + b" ")
    remedy = "the weights were trained with .*; copy it there from the training run"
    for use in (CheckpointPolicy, lambda folder: PolicyReference(str(folder)).record()):
        with pytest.raises(InputError, match=rf"^{path}: .*{remedy}"):
            use(checkpoint)
    write_manifest(checkpoint, None)
    if kind != "image":  # of which the changed file is no tokenizer
        record = PolicyReference(str(checkpoint)).record()
        assert "used unverified" in record.notes[0]


def test_the_record_of_a_checkpoint_names_what_it_is_used_with(checkpoint: Path) -> None:
    record = PolicyReference(str(checkpoint)).record()
    assert record.notes == ()
    assert record.settings == {
        "cameras": ["wrist"],
        "history": HISTORY,
        "chunk": CHUNK,
        "predicted_frames": 1,
        "pixels": 64,
        "action_ranges": {"minimum": list(ACTION_MIN), "maximum": list(ACTION_MAX)},
        "image_tokenizer_sha256": shipped_image_tokenizer().sha256,
        "text_tokenizer_sha256": shipped_text_tokenizer().sha256,
        "decoders": ["discrete"],
    }
    assert record.decoder == "discrete"
    assert PolicyReference("expert").record().settings is None


def test_the_checkpoint_says_what_it_was_trained_with_not_the_settings_beside_it(checkpoint: Path) -> None:
    path = checkpoint.parents[1] / "config.yaml"
    path.write_text(path.read_text().replace("- wrist", "- agent").replace("chunk: 3", "chunk: 4"))
    policy = CheckpointPolicy(checkpoint, device="cpu")
    assert (policy.cameras, policy.chunk) == (("wrist",), CHUNK)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ([], "policy is no JSON object"),
        ({"cameras": "agent"}, "policy: action_ranges|policy: cameras is 'agent', expected a list"),
        (
            policy_settings(DataConfig()).to_json()
            | {"state_ranges": {"minimum": [0.0] * 7, "maximum": [1.0] * 7}},
            "^checkpoint=.*data.state_ranges has 7 minima and 7 maxima, expected 8 of each",
        ),
        (
            policy_settings(DataConfig()).to_json() | {"cameras": ["agent", "agent"]},
            r"cameras \['agent', 'agent'\], expected some of agent, wrist, each once",
        ),
    ],
)
def test_malformed_settings_in_a_manifest_are_refused(policy: Any, message: str, checkpoint: Path) -> None:
    write_manifest(checkpoint, policy)
    with pytest.raises(InputError, match=message):
        PolicyReference(str(checkpoint)).record()


def test_records_of_earlier_versions_are_of_discrete_decoders(checkpoint: Path) -> None:
    earlier = policy_settings(DataConfig(cameras=["wrist"])).to_json()
    del earlier["decoders"]
    write_manifest(checkpoint, earlier)
    record = PolicyReference(str(checkpoint)).record()
    assert record.settings is not None
    assert (record.settings["decoders"], record.decoder) == (["discrete"], "discrete")
    write_manifest(checkpoint, earlier | {"predicted_frames": 2})
    record = PolicyReference(str(checkpoint)).record()
    assert record.settings is not None
    assert record.settings["predicted_frames"] == 2, "acting does not depend on it"


def files(checkpoint: Path, **settings: Any) -> ExportedConfig:
    tokenizers = checkpoint.parents[1] / "tokenizers"
    return ExportedConfig(
        image_tokenizer=str(tokenizers / "image_tokenizer.safetensors"),
        text_tokenizer=str(tokenizers / "text_tokenizer.json"),
        **settings,
    )


def write_policy(folder: Path, settings: PolicySettings) -> None:
    (folder / "policy.json").write_text(json.dumps(settings.to_json()))


def test_exported_weights_act_by_the_file_beside_them(checkpoint: Path, exported: Path) -> None:
    write_policy(exported, policy_settings(DataConfig(cameras=["wrist"], history=HISTORY, chunk=CHUNK)))
    policy = CheckpointPolicy(exported, device="cpu", exported=files(checkpoint))
    assert observed(policy) == (CHUNK, HISTORY, ("wrist",), 64, False)
    observations = [observation(1, 1), observation(2, 2)]
    expected = CheckpointPolicy(checkpoint, device="cpu").act(observations)
    np.testing.assert_array_equal(policy.act(observations), expected)
    record = PolicyReference(str(exported), exported=files(checkpoint)).record()
    assert record == replace(PolicyReference(str(checkpoint)).record(), weights=None)
    changed = PolicyReference(str(exported), exported=files(checkpoint, chunk=9)).record()
    assert changed.settings is not None
    assert changed.settings["chunk"] == 9
    assert changed.notes == ("chunk is 9, the weights were trained with 3",)


def test_exported_weights_without_the_file_say_what_was_assumed(checkpoint: Path, exported: Path) -> None:
    record = PolicyReference(str(exported), exported=files(checkpoint, chunk=CHUNK)).record()
    assert (
        "no policy.json: cameras agent, history 2, WorldVLA's action ranges and no state assumed"
        in record.notes[0]
    )
    assert record.settings is not None
    assert (record.settings["cameras"], record.settings["chunk"]) == (["agent"], CHUNK)


def test_other_files_than_those_of_the_training_are_refused_for_exported_weights(
    checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    settings = policy_settings(DataConfig(cameras=["wrist"]))
    write_policy(exported, replace(settings, image_tokenizer_sha256="0" * 64))
    with pytest.raises(
        InputError, match=r"^exported\.image_tokenizer=.*: has checksum .* 000000000000; give"
    ):
        PolicyReference(str(exported), exported=files(checkpoint)).record()
    write_policy(exported, replace(settings, text_tokenizer_sha256="1" * 64))
    with pytest.raises(InputError, match=r"^exported\.text_tokenizer=.*trained with 111111111111; give the"):
        PolicyReference(str(exported), exported=files(checkpoint)).record()
    write_policy(exported, settings)
    write_ranges(checkpoint.parents[1], ACTION_MIN, [*ACTION_MAX[:6], 0.5])
    given = files(checkpoint, action_ranges=str(checkpoint.parents[1] / "action_ranges.json"))
    with pytest.raises(
        InputError, match=r"^exported\.action_ranges=.*-1 to 0\.5\], the weights were trained"
    ):
        PolicyReference(str(exported), exported=given).record()
    (exported / "policy.json").write_text("[]")
    with pytest.raises(InputError, match=r"policy\.json: found \[\], expected a JSON object"):
        PolicyReference(str(exported), exported=files(checkpoint)).record()
    write_policy(exported, replace(settings, cameras=("../side",)))
    with pytest.raises(InputError, match=r"cameras \['\.\./side'\], expected some of agent, wrist"):
        PolicyReference(str(exported), exported=files(checkpoint)).record()
    write_policy(exported, settings)
    with pytest.raises(
        InputError, match=r"^exported\.cameras=\['agent'\]: the weights were trained with wrist; leave"
    ):
        PolicyReference(str(exported), exported=files(checkpoint, cameras=["agent"])).record()
    write_policy(exported, replace(settings, cameras=("agent", "wrist")))
    with pytest.raises(InputError, match=r"trained with agent, wrist in this order; leave it out$"):
        PolicyReference(str(exported), exported=files(checkpoint, cameras=["wrist", "agent"])).record()
    write_policy(exported, replace(settings, pixels=65))
    with pytest.raises(InputError, match="cannot be used with 65 px"):
        CheckpointPolicy(exported, device="cpu", exported=files(checkpoint))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk": 0}, "exported.chunk=0: expected at least 1"),
        ({"chunk": -2}, "exported.chunk=-2: expected at least 1"),
        ({"history": 0}, "exported.history=0: expected at least 1"),
        ({"pixels": 0}, "exported.pixels=0: expected at least 1"),
        (
            {"chunk": 42},
            "2 frames of 76 tokens and 42 actions of 9 take 530 positions without the instruction, the model "
            "has 512; lower exported.history or exported.chunk",
        ),
        (
            {"history": 7},
            "7 frames of 76 tokens and 5 actions of 9 take 577 positions without the instruction",
        ),
    ],
)
def test_settings_that_no_model_can_act_with_are_refused_when_it_is_loaded(
    changed: dict[str, Any], message: str, checkpoint: Path, exported: Path
) -> None:
    with pytest.raises(InputError) as raised:
        CheckpointPolicy(exported, "cpu", exported=files(checkpoint, **changed))
    assert message in str(raised.value)
