"""Deciding by the action head or on tokens: which of them, with what result, and where it is recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from data.config import DataConfig
from data.contracts import Decoder
from data.errors import InputError
from data.tokens.action import ACTION_MAX, ACTION_MIN, decode, denormalise
from eval.config import EvalCommandConfig, ExportedConfig
from eval.policy import loaded_model as model_module
from eval.policy.batch_invariance import ContinuousDecoder
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.interface import Observation
from eval.policy.source import PolicyReference, named_policy
from pretrain.checkpoint.manifest import Manifest
from pretrain.config import LossConfig, RunConfig, TrainingConfig, trained_decoders
from pretrain.convert.chameleon import hugging_face_config
from pretrain.convert.exporting import ARCHITECTURE
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.model.generate import decode_action_chunk
from pretrain.model.generate_continuous import predict_actions
from pretrain.model.transformer import Transformer, initialise
from pretrain.policy_settings import PolicySettings
from pretrain.settings import to_yaml
from pretrain.sources import libero_source
from tests.support.fake_evaluations import earlier_journal, fake_progress
from tests.support.fake_suite import FakePolicySource
from tests.support.tokenizers import shipped_image_tokenizer, shipped_text_tokenizer

CHUNK = 3
MODEL = ModelConfig(
    vocabulary_size=16_896,
    hidden_size=32,
    ffn_size=64,
    layers=2,
    heads=2,
    max_positions=512,
    dropout=0.0,
    action_head=ActionHeadConfig(time_horizon=CHUNK),
)


@pytest.fixture(scope="module")
def network() -> Transformer:
    """A network with a head, whose actions differ from prompt to prompt."""
    made = Transformer(MODEL)
    initialise(made, seed=2)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    return made.eval().requires_grad_(False)


class Run:
    """A run's folder with one checkpoint, without the file of its weights."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoint = folder, folder / "checkpoints" / "step_00000007"
        self.checkpoint.mkdir(parents=True)
        shipped_text_tokenizer().save(folder / "tokenizers")
        shipped_image_tokenizer().save(folder / "tokenizers" / "image_tokenizer.safetensors")
        ranges = {"minimum": list(ACTION_MIN), "maximum": list(ACTION_MAX)}
        (folder / "action_ranges.json").write_text(json.dumps(ranges))
        self.write()

    def write(
        self, head: ActionHeadConfig | None = MODEL.action_head, tokens: bool = True, actions: float = 1
    ) -> None:
        """Write settings and manifest of a training with this head, on tokens of actions or not."""
        data = DataConfig(url="shards", chunk=CHUNK, history=1, cameras=["agent", "wrist"], state=True)
        data.mixture.action = actions
        loss = LossConfig(tokens_for_actions=tokens)
        model = replace(MODEL, action_head=head)
        config = TrainingConfig(run=RunConfig(name="run"), model=model, data=data, loss=loss)
        (self.folder / "config.yaml").write_text(to_yaml(config))
        image, text = shipped_image_tokenizer().sha256, shipped_text_tokenizer().sha256
        settings = PolicySettings.of(data, 64, (libero_source(data),), image, text, trained_decoders(config))
        Manifest(7, 7, {"policy": settings.to_json()}, {}, {}).write(self.checkpoint)

    def record(self, decoder: Decoder | None) -> str | None:
        """The decoder in the record of its policy."""
        return PolicyReference(str(self.checkpoint), device="cpu", decoder=decoder).record().decoder


@pytest.fixture
def run(tmp_path: Path, network: Transformer, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(model_module, "load_weights", lambda path, choice: dict(network.state_dict()))
    return Run(tmp_path / "run")


def observations(count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(
            number,
            f"lift {'cube ' * (number % 3)}{number}",
            rng.integers(0, 256, (1, 2, 64, 64, 3), dtype=np.uint8),
            rng.uniform(-1, 1, 8),
        )
        for number in range(count)
    ]


def test_the_head_decides_unless_tokens_are_asked_for(run: Run, network: Transformer) -> None:
    seen = observations(3)
    by_head = CheckpointPolicy(run.checkpoint, "cpu")
    assert by_head.decoder == "continuous"
    prompts = by_head.prompts(seen)
    values = [predict_actions(network, [prompt], -(-len(prompt) // 64) * 64)[0] for prompt in prompts]
    actions = by_head.act(seen)
    np.testing.assert_array_equal(actions, [denormalise(each) for each in values])
    assert actions.dtype == np.float64
    assert (np.abs(values) < 1).mean() > 0.2, "most are clipped"
    on_tokens = CheckpointPolicy(run.checkpoint, "cpu", decoder="discrete")
    np.testing.assert_array_equal(
        on_tokens.act(seen),
        [decode(decode_action_chunk(network, [prompt], CHUNK)[0]) for prompt in prompts],
    )


def test_actions_that_are_not_finite_never_reach_a_robot(
    run: Run, network: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    weights["action_head.hidden_projection.bias"][0] = float("nan")
    monkeypatch.setattr(model_module, "load_weights", lambda path, choice: weights)
    policy = CheckpointPolicy(run.checkpoint, "cpu")
    with pytest.raises(InputError, match=r"^checkpoint=.*step_00000007: its action head predicts .*; take"):
        policy.act(observations(2))


def test_actions_of_the_head_are_the_same_alone_and_in_any_batch(run: Run) -> None:
    seen = observations(7)
    policy, alone = (CheckpointPolicy(run.checkpoint, "cpu", batch) for batch in (4, 1))
    together = policy.act(seen)
    assert len({actions.tobytes() for actions in together}) == 7
    np.testing.assert_array_equal(policy.act(seen[::-1])[::-1], together)
    for number in (0, 4, 6):
        np.testing.assert_array_equal(alone.act([seen[number]])[0], together[number])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_of_the_head_are_bitwise_equal_at_every_size_in_use(
    network: Transformer, dtype: torch.dtype
) -> None:
    rounded = Transformer(MODEL)
    rounded.load_state_dict(network.state_dict())
    decoder = ContinuousDecoder(rounded.eval().to(dtype), max_batch=4)
    rng = np.random.default_rng(1)
    rows: list[NDArray[np.integer]] = [rng.integers(16_384, 16_800, length) for length in (60, 50, 61, 33)]
    sizes = decoder._batch_sizes(64, rows[0])
    expected = decoder.probe([rows[0]] * sizes[0], 64)[0]
    assert expected.dtype == np.float32
    for size in sizes:
        for position in range(size):
            filled = [rows[1 + i % 3] for i in range(size)]
            filled[position] = rows[0]
            np.testing.assert_array_equal(decoder.probe(filled, 64)[position], expected)


@pytest.mark.parametrize(
    ("head", "tokens", "found", "missing"),
    [
        (None, True, "discrete", "continuous"),
        (MODEL.action_head, False, "continuous", "discrete"),
    ],
)
def test_a_decoder_that_the_training_did_not_make_is_refused(
    head: ActionHeadConfig | None,
    tokens: bool,
    found: Decoder,
    missing: Decoder,
    run: Run,
    network: Transformer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run.write(head, tokens)
    weights = {
        name: value for name, value in network.state_dict().items() if head or "action_head" not in name
    }
    monkeypatch.setattr(model_module, "load_weights", lambda path, choice: weights)
    assert run.record(None) == run.record(found) == found
    only = f"^decoder={missing}: .*was trained for {found} decoding of actions only; give another"
    with pytest.raises(InputError, match=only):
        run.record(missing)
    with pytest.raises(InputError, match=only):
        CheckpointPolicy(run.checkpoint, "cpu", decoder=missing)


@pytest.mark.parametrize("decoder", [None, "discrete", "continuous"])
def test_a_training_without_action_samples_is_refused(run: Run, decoder: Decoder | None) -> None:
    run.write(actions=0)
    for use in (run.record, lambda chosen: CheckpointPolicy(run.checkpoint, "cpu", decoder=chosen)):
        with pytest.raises(InputError, match=r"trained without action samples .*; take a checkpoint of"):
            use(decoder)


def test_a_head_of_another_chunk_is_refused(run: Run) -> None:
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("time_horizon: 3", "time_horizon: 5"))
    with pytest.raises(InputError, match=r"its action head predicts 5 actions, the chunk has 3; leave"):
        run.record(None)
    assert run.record("discrete") == "discrete"
    path.write_text(
        path.read_text().replace("action_head:", "action_head: null\nignored:").partition("ignored")[0]
    )
    with pytest.raises(InputError, match=r"was trained with an action head, but its network has none"):
        run.record("continuous")


def test_each_decoder_of_a_checkpoint_has_results_of_its_own(run: Run) -> None:
    def folder(decoder: Decoder | None) -> str:
        config = EvalCommandConfig(checkpoint=str(run.checkpoint), suite="fake", decoder=decoder)
        reference, step, out = named_policy(config)
        assert (reference.decoder, step, out.parent) == (decoder, 7, run.folder / "eval")
        return out.name

    assert folder(None) == folder("continuous") == "step_00000007-fake-continuous"
    assert folder("discrete") == "step_00000007-fake-discrete"
    run.write(head=None)
    assert folder(None) == folder("discrete") == "step_00000007-fake"
    with pytest.raises(InputError, match=r"^decoder=discrete: policy=expert has no network; leave it out$"):
        named_policy(EvalCommandConfig(policy="expert", decoder="discrete"))


def test_exported_weights_act_by_their_head(run: Run, network: Transformer, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hugging_face_config(MODEL, "float32", None, ARCHITECTURE)))
    save_file(network.state_dict(), folder / "model.safetensors")
    tokenizers = run.folder / "tokenizers"
    files = ExportedConfig(
        str(tokenizers / "image_tokenizer.safetensors"), str(tokenizers / "text_tokenizer.json")
    )

    def reference(decoder: Decoder | None = None, **changed: int) -> PolicyReference:
        return PolicyReference(str(folder), exported=replace(files, **changed), device="cpu", decoder=decoder)

    record = reference().record()
    assert record.settings is not None
    assert (record.decoder, record.settings["chunk"]) == ("continuous", CHUNK)
    assert (
        "history 2, chunk 3, WorldVLA's action ranges, both decoders and no state assumed" in record.notes[0]
    )
    with pytest.raises(InputError, match=r"its action head predicts 3 actions, the chunk has 5; leave"):
        reference(chunk=5).record()
    assert reference("discrete", chunk=5).record().decoder == "discrete"
    described = PolicyReference(str(run.checkpoint)).record().settings
    (folder / "policy.json").write_text(json.dumps(described))
    loaded = reference().load()
    assert isinstance(loaded, CheckpointPolicy)
    seen = observations(2)
    np.testing.assert_array_equal(loaded.act(seen), CheckpointPolicy(run.checkpoint, "cpu").act(seen))


DATA = DataConfig(chunk=2)
SETTINGS = PolicySettings.of(
    DATA,
    64,
    (libero_source(DATA),),
    "a" * 64,
    "b" * 64,
    ("discrete", "continuous"),
).to_json()


def progress_of(out: Path, decoder: Decoder) -> list[int]:
    return fake_progress(out, FakePolicySource("expert", "fp32", decoder, SETTINGS))


def test_episodes_of_another_decoder_are_not_reused(tmp_path: Path) -> None:
    assert progress_of(tmp_path, "discrete") == [0, 1, 2]
    assert progress_of(tmp_path, "continuous") == [0, 1, 2]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["decoder"] == "continuous"
    assert results["policy_settings"]["decoders"] == ["discrete", "continuous"]
    assert progress_of(tmp_path, "continuous") == progress_of(tmp_path, "discrete") == [2]
    assert json.loads((tmp_path / "results.json").read_text())["decoder"] == "discrete"
    assert len(list(tmp_path.glob("episodes-*.jsonl"))) == 2


def test_episodes_of_versions_that_had_one_decoder_are_found(tmp_path: Path) -> None:
    progress_of(tmp_path, "discrete")
    settings = {name: value for name, value in SETTINGS.items() if name != "decoders"}
    assert [path.name for path in tmp_path.glob("episodes-*.jsonl")] == [earlier_journal(settings)]
