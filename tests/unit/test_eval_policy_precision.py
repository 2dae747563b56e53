"""Evaluation in bf16: which arithmetic is chosen, what it computes, and where it is recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.stream.samples import action_prompt
from data.tokens.action import decode
from data.tokens.image_block import image_block
from data.tokens.prompt_text import action_text
from eval.config import EvalCommandConfig, ExportedConfig, Precision
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.interface import Observation
from eval.policy.loaded_model import load_model
from eval.policy.precision import chosen_arithmetic
from eval.policy.source import PolicyReference, named_policy
from pretrain.convert.chameleon import hugging_face_config
from pretrain.convert.exporting import ARCHITECTURE
from pretrain.model.config import ModelConfig
from pretrain.model.generate import decode_action_chunk
from pretrain.model.transformer import Transformer, initialise
from tests.support.fake_evaluations import earlier_journal, fake_progress
from tests.support.fake_suite import FakePolicySource
from tests.support.tokenizers import shipped_image_tokenizer, shipped_text_tokenizer

MODEL = ModelConfig(
    vocabulary_size=16_896, hidden_size=64, ffn_size=128, layers=2, heads=2, max_positions=512, dropout=0.0
)
CHUNK = 3


@pytest.fixture(scope="module")
def network() -> Transformer:
    """A network whose logits differ from prompt to prompt."""
    made = Transformer(MODEL)
    initialise(made, seed=0)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, network: Transformer) -> tuple[Path, ExportedConfig]:
    """The network in transformers' layout, and the files beside it."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "config.json").write_text(json.dumps(hugging_face_config(MODEL, "float32", None, ARCHITECTURE)))
    save_file(network.state_dict(), folder / "model.safetensors")
    shipped_text_tokenizer().save(folder)
    shipped_image_tokenizer().save(folder / "image_tokenizer.safetensors")
    files = ExportedConfig(str(folder / "image_tokenizer.safetensors"), str(folder / "text_tokenizer.json"))
    return folder, replace(files, chunk=CHUNK, history=1)


def observations(count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(
            number,
            f"lift {'cube ' * (number % 3)}{number}",
            rng.integers(0, 256, (1, 1, 64, 64, 3), dtype=np.uint8),
        )
        for number in range(count)
    ]


def policy(weights: tuple[Path, ExportedConfig], precision: Precision, batch: int = 8) -> CheckpointPolicy:
    return CheckpointPolicy(weights[0], "cpu", batch, weights[1], precision=precision)


@pytest.mark.parametrize(
    ("device", "has_gpu", "has_bf16", "expected"),
    [
        ("cpu", True, True, "fp32"),
        ("cuda", True, True, "bf16"),
        ("cuda", True, False, "fp32"),
        (None, True, True, "bf16"),
        (None, False, True, "fp32"),
    ],
)
def test_auto_is_bf16_on_a_gpu_that_has_it(
    device: str | None, has_gpu: bool, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def is_supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return has_bf16

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert chosen_arithmetic("auto", device) == expected
    assert not any(asked)  # an emulated bf16 is slower than fp32
    for precision in ("fp32", "bf16"):
        assert chosen_arithmetic(precision, device) == precision


def test_actions_are_those_of_a_network_in_bf16(
    weights: tuple[Path, ExportedConfig], network: Transformer
) -> None:
    rounded = Transformer(MODEL)
    rounded.load_state_dict(network.state_dict())
    rounded = rounded.eval().to(torch.bfloat16)
    text, image = shipped_text_tokenizer(), shipped_image_tokenizer()
    seen = observations(6)
    expected = []
    for each in seen:
        blocks = [image_block(codes, 64) for codes in image.encode(each.frames[:, 0])]
        prompt = action_prompt(text.encode(action_text(each.instruction)), blocks)
        expected.append(decode(decode_action_chunk(rounded, [prompt], CHUNK)[0]))
    found = policy(weights, "bf16").act(seen)
    np.testing.assert_array_equal(found, np.stack(expected))
    np.testing.assert_array_equal(policy(weights, "bf16").act(seen), found)
    in_fp32 = policy(weights, "fp32").act(seen)
    assert (in_fp32 != found).any()
    np.testing.assert_array_equal(policy(weights, "auto").act(seen), in_fp32)  # on a CPU


def test_actions_in_bf16_do_not_depend_on_the_batch(weights: tuple[Path, ExportedConfig]) -> None:
    seen = observations(8)
    together = policy(weights, "bf16").act(seen)
    assert len({actions.tobytes() for actions in together}) > 4
    np.testing.assert_array_equal(policy(weights, "bf16").act(seen[::-1])[::-1], together)
    for number in (0, 3, 7):
        alone = policy(weights, "bf16", batch=1).act([seen[number]])[0]
        np.testing.assert_array_equal(alone, together[number])


def test_the_image_tokenizer_stays_in_fp32(weights: tuple[Path, ExportedConfig]) -> None:
    model = load_model(weights[0], weights[1], "cpu", "bf16")
    assert model.precision == "bf16"
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.bfloat16}
    frames = np.stack([each.frames[0, 0] for each in observations(3)])
    np.testing.assert_array_equal(model.image.encode(frames), shipped_image_tokenizer().encode(frames))


def test_the_reference_of_a_policy_says_its_arithmetic(weights: tuple[Path, ExportedConfig]) -> None:
    config = EvalCommandConfig(
        checkpoint=str(weights[0]), exported=weights[1], out="results", precision="bf16"
    )
    reference, _, _ = named_policy(config)
    assert reference.precision == "bf16"
    assert reference.record().precision == "bf16"
    loaded = reference.load()
    assert isinstance(loaded, CheckpointPolicy)
    assert loaded._model.precision == "bf16"
    assert PolicyReference(str(weights[0]), exported=weights[1], device="cpu").record().precision == "fp32"
    assert PolicyReference("expert").record().precision is None


def progress_of(out: Path, precision: str | None) -> list[int]:
    return fake_progress(out, FakePolicySource("expert", precision))


def test_episodes_of_another_arithmetic_are_not_reused(tmp_path: Path) -> None:
    assert progress_of(tmp_path, "fp32") == [0, 1, 2]
    assert progress_of(tmp_path, "bf16") == [0, 1, 2]
    assert json.loads((tmp_path / "results.json").read_text())["precision"] == "bf16"
    assert progress_of(tmp_path, "bf16") == [2]
    assert progress_of(tmp_path, "fp32") == [2]
    assert json.loads((tmp_path / "results.json").read_text())["precision"] == "fp32"
    assert len(list(tmp_path.glob("episodes-*.jsonl"))) == 2


def test_episodes_of_versions_that_had_fp32_alone_are_found(tmp_path: Path) -> None:
    progress_of(tmp_path, "fp32")
    assert [path.name for path in tmp_path.glob("episodes-*.jsonl")] == [earlier_journal(None)]
