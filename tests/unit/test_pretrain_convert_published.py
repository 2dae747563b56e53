"""The layout of WorldVLA's and RynnVLA-002's class, in and out: few rows in q/k norms, an action head."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.cli.main import main
from data.errors import InputError
from pretrain.checkpoint.weights import load_weights
from pretrain.convert.exporting import export_weights
from pretrain.convert.importing import import_weights
from pretrain.convert.source import open_weights_folder
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.model.transformer import expected_shapes
from tests.support import hugging_face
from tests.support.chameleon import chameleon, chameleon_logits, our_logits
from tests.support.hugging_face import SMALL

HORIZON = 3
WITH_HEAD = replace(SMALL, action_head=ActionHeadConfig(time_horizon=HORIZON))
WITHOUT = SMALL
QUERIES = "action_head.action_token_embeddings.weight"


def heads_of(config: ModelConfig, name: str) -> int:
    return config.heads if "q_norm" in name else config.shared_heads


def is_norm(name: str) -> bool:
    return "q_norm" in name or "k_norm" in name


def publish(folder: Path, config: ModelConfig, rows: int = 1) -> dict[str, Tensor]:
    """Write random weights as the published class saves them; its tensors."""
    generator = torch.Generator().manual_seed(7)
    tensors: dict[str, Tensor] = {}
    for name, shape in expected_shapes(config).items():
        stored = (rows, shape[1]) if is_norm(name) else shape
        tensors[name] = torch.randn(stored, generator=generator).to(torch.bfloat16)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values: dict[str, Any] = {
        "architectures": ["ChameleonXLLMXForConditionalGeneration_ck_action_head"],
        "model_type": "chameleon",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.shared_heads,
        "max_position_embeddings": config.max_positions,
        "model_parallel_size": rows,
        "mask_image_logits": False,
        "z_loss_weight": 1e-5,
        "rope_theta": 10_000.0,
        "torch_dtype": "bfloat16",
        "action_dim": 7,
        "time_horizon": 5 if config.action_head is None else config.action_head.time_horizon,
    }
    (folder / "config.json").write_text(json.dumps(values))
    return tensors


def import_(source: Path, out: Path) -> None:
    import_weights(source, out, 1 << 20, lambda *_: None)


def export(checkpoint: Path, out: Path, layout: Any, file_bytes: int = 1 << 30) -> None:
    export_weights(checkpoint, out, None, None, file_bytes, lambda *_: None, layout)


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("config", [WITH_HEAD, WITHOUT], ids=["action head", "no action head"])
def test_the_published_layout_comes_back_as_it_was(config: ModelConfig, rows: int, tmp_path: Path) -> None:
    before = publish(tmp_path / "theirs", config, rows)
    import_(tmp_path / "theirs", tmp_path / "ours")
    weights = load_weights(tmp_path / "ours")
    for name, tensor in before.items():
        heads = heads_of(config, name) // rows if is_norm(name) else 1
        assert torch.equal(weights[name], tensor.float().repeat_interleave(heads, 0)), name
    export(tmp_path / "ours", tmp_path / "back", "published", 1 << 14)
    assert hugging_face.bitwise(hugging_face.tensors(tmp_path / "back"), before)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == before.keys()
    values, head = settings(tmp_path / "back"), config.action_head is not None
    assert values["model_parallel_size"] == rows
    assert values["model_type"] == "chameleon"
    assert not values["mask_image_logits"], "their class would predict no image"
    suffix = "_ck_action_head" if head else "_ck"
    assert values["architectures"] == [f"ChameleonXLLMXForConditionalGeneration{suffix}"]
    assert (values.get("action_dim"), values.get("time_horizon")) == ((7, HORIZON) if head else (None, None))


@pytest.mark.parametrize("config", [WITH_HEAD, WITHOUT], ids=["action head", "no action head"])
def test_the_layout_of_transformers_loads_cleanly_and_comes_back(config: ModelConfig, tmp_path: Path) -> None:
    from transformers import ChameleonForConditionalGeneration

    publish(tmp_path / "theirs", config)
    import_(tmp_path / "theirs", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", "transformers", 1 << 14)
    loaded: Any = ChameleonForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True, dtype="auto"
    )
    model, info = loaded
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    weights = load_weights(tmp_path / "ours")
    network = hugging_face.network(model.state_dict())
    head = {name: tensor for name, tensor in weights.items() if name.startswith("action_head.")}
    assert bool(head) == (config.action_head is not None)
    assert network.keys() | head.keys() == weights.keys()
    assert all(torch.equal(tensor.float(), weights[name]) for name, tensor in network.items())
    assert (tmp_path / "back" / "action_head.safetensors").is_file() == bool(head)
    import_(tmp_path / "back", tmp_path / "again")
    again = load_weights(tmp_path / "again")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    as_evaluations_read = open_weights_folder(tmp_path / "back")
    assert replace(as_evaluations_read.model, dropout=0.0) == config


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_published_class_computes_what_ours_does(rows: int, tmp_path: Path) -> None:
    """Its forward pass repeats each row for heads / model_parallel_size heads of the norm."""
    from pretrain.model.transformer import Transformer

    config = replace(SMALL, key_value_heads=None)
    publish(tmp_path / "theirs", config, rows)
    import_(tmp_path / "theirs", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", "published")
    parallel = settings(tmp_path / "back")["model_parallel_size"]
    theirs = chameleon(config)
    for name, tensor in load_file(tmp_path / "back" / "model.safetensors").items():
        repeated = tensor.float().repeat_interleave(config.heads // parallel, 0) if is_norm(name) else tensor
        theirs.get_parameter(name).data.copy_(repeated)
    ours = Transformer(config).eval()
    ours.load_state_dict(load_weights(tmp_path / "ours"))
    tokens = torch.randint(20, 250, (2, 40), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        our_logits(ours, tokens), chameleon_logits(theirs, tokens), atol=1e-4, rtol=1e-4
    )


def repeat_norms(folder: Path, config: ModelConfig) -> None:
    """Give each head the first row."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in filter(is_norm, list(tensors)):
            tensors[name] = tensors[name][:1].repeat(heads_of(config, name), 1)

    hugging_face.edit_tensors(folder, change)


def change_norms(folder: Path, name: str, changed: slice) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][changed] += 1.0

    hugging_face.edit_tensors(folder, change)


@pytest.mark.parametrize(("changed", "rows"), [(slice(2, 4), 2), (slice(1, 2), 4)], ids=["halves", "each"])
def test_heads_that_a_training_moved_apart_get_rows_of_their_own(
    changed: slice, rows: int, tmp_path: Path
) -> None:
    config = replace(SMALL, key_value_heads=None)
    publish(tmp_path / "theirs", config)
    repeat_norms(tmp_path / "theirs", config)
    change_norms(tmp_path / "theirs", "model.layers.1.self_attn.k_norm.bias", changed)
    import_(tmp_path / "theirs", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", "published")
    tensors = load_file(tmp_path / "back" / "model.safetensors")
    assert {tensor.shape[0] for name, tensor in tensors.items() if is_norm(name)} == {rows}
    assert settings(tmp_path / "back")["model_parallel_size"] == rows
    again, weights = tmp_path / "again", load_weights(tmp_path / "ours")
    import_(tmp_path / "back", again)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_weights(again).items())


def test_heads_apart_within_a_shared_key_head_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    publish(tmp_path / "theirs", WITHOUT)
    repeat_norms(tmp_path / "theirs", WITHOUT)
    change_norms(tmp_path / "theirs", "model.layers.0.self_attn.q_norm.weight", slice(1, 2))
    import_(tmp_path / "theirs", tmp_path / "ours")
    with pytest.raises(InputError, match=r"at most 2 rows .* 4 query heads and 2 key .* layout=transformers"):
        export(tmp_path / "ours", tmp_path / "back", "published")
    assert not (tmp_path / "back").exists()


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        import_(folder, folder.parent / "ours")
    assert not (folder.parent / "ours").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_head_whose_settings_lack_its_sizes_is_read_off_its_tensors(tmp_path: Path) -> None:
    publish(tmp_path / "theirs", WITH_HEAD)

    def shorten(values: dict[str, Any]) -> None:
        del values["action_dim"], values["time_horizon"]

    hugging_face.edit_json(tmp_path / "theirs" / "config.json", shorten)
    assert open_weights_folder(tmp_path / "theirs").model.action_head == ActionHeadConfig(HORIZON)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"time_horizon": 5}, rf"time_horizon=5, expected {HORIZON}: .* \[1, 672\] holds time_horizon x 7 x"),
        ({"time_horizon": "x"}, rf"time_horizon='x', expected {HORIZON}: "),
        ({"action_dim": 33}, "action_dim=33, expected 1 to 32"),
        ({"action_dim": 6}, "its tensors are not those of the network"),
    ],
)
def test_settings_of_another_head_are_refused(changed: dict[str, Any], expected: str, tmp_path: Path) -> None:
    publish(tmp_path / "theirs", WITH_HEAD)
    hugging_face.edit_json(tmp_path / "theirs" / "config.json", lambda values: values.update(changed))
    assert re.search(expected, refused(tmp_path / "theirs"))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("hidden_projection.weight", (16, 32), "[16, 32], expected [8, 32]"),
        ("output_projection.model.fc2.weight", (6, 8), "[6, 8], expected [7, 8]"),
        ("action_token_embeddings.weight", (1, 100), f"[1, 100], expected [1, {HORIZON * 7 * 32}]"),
        ("transformer_encoder.norm.bias", None, "1 missing: action_head.transformer_encoder.norm.bias"),
        ("more.weight", (1,), "1 not of the network: action_head.more.weight"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_heads_of_another_make_are_refused(
    name: str, shape: tuple[int, ...] | None, expected: str, tmp_path: Path
) -> None:
    publish(tmp_path / "theirs", WITH_HEAD)

    def change(tensors: dict[str, Tensor]) -> None:
        if shape is None:
            del tensors[f"action_head.{name}"]
        else:
            tensors[f"action_head.{name}"] = torch.zeros(shape)

    hugging_face.edit_tensors(tmp_path / "theirs", change)
    assert expected in refused(tmp_path / "theirs")


def test_a_head_without_the_published_queries_is_unknown(tmp_path: Path) -> None:
    publish(tmp_path / "theirs", WITH_HEAD)
    hugging_face.edit_tensors(tmp_path / "theirs", lambda tensors: tensors.pop(QUERIES))
    assert "not of the network: action_head." in refused(tmp_path / "theirs")


def test_a_head_that_is_in_two_files_is_refused(tmp_path: Path) -> None:
    tensors = publish(tmp_path / "theirs", WITH_HEAD)
    save_file({QUERIES: tensors[QUERIES]}, tmp_path / "theirs" / "action_head.safetensors")
    assert "as another file does; remove one of them" in refused(tmp_path / "theirs")


def test_commands_name_the_action_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(tmp_path / "theirs", WITH_HEAD)
    ours = f"{tmp_path}/ours"
    assert main(["convert", "import", f"source={tmp_path}/theirs", f"out={ours}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "action head: 45 of the tensors, 3 actions of 7 numbers" in printed
    assert "model.action_head.time_horizon=3" in printed
    assert main(["inspect", "checkpoint", f"path={ours}"]) == 0
    assert "action head: 3 actions of 7 numbers" in capsys.readouterr().out
    assert main(["inspect", "checkpoint", f"path={ours}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["action_head"]["time_horizon"] == HORIZON
    for layout in ("published", "transformers"):
        out = tmp_path / layout
        assert main(["convert", "export", f"checkpoint={ours}", f"out={out}", f"layout={layout}"]) == 0
        printed = capsys.readouterr().out
        assert "action head: 45 of the tensors, 3 actions of 7 numbers" in printed
        assert ("model_parallel_size=1 rows" in printed) == (layout == "published")
    assert main(["convert", "export", f"checkpoint={ours}", "out=x", "layout=theirs"]) == 2
    assert "layout" in capsys.readouterr().err
