"""Import and export of published weights: the same bytes, the same logits, in bounded memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.cli.main import main
from data.errors import InputError
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.weights import load_weights
from pretrain.convert.chameleon import code_name, vocabulary_map
from pretrain.convert.source import open_weights_folder
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer, expected_shapes
from tests.support import hugging_face
from tests.support.chameleon import LENGTH, chameleon_logits, our_logits
from tests.support.hugging_face import SMALL


def convert(*arguments: str) -> None:
    assert main(["convert", *arguments]) == 0


def tokens() -> torch.Tensor:
    return torch.randint(20, 250, (2, LENGTH), generator=torch.Generator().manual_seed(2))


def load_back(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Load an exported folder with transformers; model and loading info."""
    from transformers import ChameleonForConditionalGeneration

    loaded: Any = ChameleonForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, dtype="auto"
    )
    model, info = loaded
    return model.eval(), info


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "mixed"], ids=str)
def test_import_and_export_give_the_same_bytes(dtype: Any, tmp_path: Path) -> None:
    model = hugging_face.save(tmp_path / "theirs", dtype=dtype)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 3
    convert("import", f"source={tmp_path}/theirs", f"out={tmp_path}/ours", "shard_megabytes=1")
    convert("export", f"checkpoint={tmp_path}/ours", f"out={tmp_path}/back")
    before = hugging_face.network(hugging_face.tensors(tmp_path / "theirs"))
    assert hugging_face.bitwise(before, hugging_face.network(dict(model.state_dict())))
    assert hugging_face.bitwise(hugging_face.tensors(tmp_path / "back"), before)
    weights = load_weights(tmp_path / "ours")
    assert all(torch.equal(weights[name], tensor.float()) for name, tensor in before.items())


@pytest.mark.parametrize(
    "changes",
    [{}, {"key_value_heads": None}, {"swin_norm": True, "heads": 8}],
    ids=["shared heads", "7b", "34b"],
)
def test_logits_are_the_same_on_both_sides(changes: dict[str, Any], tmp_path: Path) -> None:
    config = replace(SMALL, **changes)
    theirs = hugging_face.save(tmp_path / "theirs", config)
    convert("import", f"source={tmp_path}/theirs", f"out={tmp_path}/ours")
    settings = Manifest.read(open_checkpoint(tmp_path / "ours")).metadata["config"]["model"]
    ours = Transformer(replace(ModelConfig(**settings), dropout=0.0)).eval()
    ours.load_state_dict(load_weights(tmp_path / "ours"), strict=True)
    expected = chameleon_logits(theirs, tokens())
    torch.testing.assert_close(our_logits(ours, tokens()), expected, atol=1e-5, rtol=0)
    convert("export", f"checkpoint={tmp_path}/ours", f"out={tmp_path}/back", "shard_megabytes=1")
    back, info = load_back(tmp_path / "back")
    assert torch.equal(chameleon_logits(back, tokens()), expected)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert all(name.startswith("model.vqmodel.") for name in info["missing_keys"])


@pytest.mark.parametrize("rows", [1, 2], ids=lambda rows: f"{rows} model-parallel ranks")
@pytest.mark.parametrize(
    "changes", [{"key_value_heads": None}, {"heads": 8, "key_value_heads": 4}], ids=["7b", "shared heads"]
)
def test_norms_shared_by_heads_give_the_logits_of_repeated_ones(
    rows: int, changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lumina-mGPT's and WorldVLA's class stores [model_parallel_size, head size]."""
    config = replace(SMALL, **changes)
    theirs = hugging_face.save(tmp_path / "theirs", config)
    shutil.copytree(tmp_path / "theirs", tmp_path / "repeated")
    stored: dict[str, torch.Tensor] = {}

    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        stored.update({name: tensor[:rows].clone() for name, tensor in tensors.items() if is_head_norm(name)})
        tensors.update(stored)

    def repeat(tensors: dict[str, torch.Tensor]) -> None:
        for name, norm in stored.items():
            heads = config.heads if "q_norm" in name else config.shared_heads
            tensors[name] = norm.repeat_interleave(heads // rows, 0)
            theirs.get_parameter(name).data.copy_(tensors[name])

    hugging_face.edit_tensors(tmp_path / "theirs", shorten)
    hugging_face.edit_tensors(tmp_path / "repeated", repeat)
    assert len(stored) == 4 * config.layers
    logits, fingerprints = [], []
    for name in ("theirs", "repeated"):
        out = tmp_path / f"{name}_out"
        convert("import", f"source={tmp_path}/{name}", f"out={out}")
        repeated = "repeated over the heads that share them: 8 tensors of q/k norms"
        assert (repeated in capsys.readouterr().out) == (name == "theirs")
        weights = load_weights(out)
        for key, tensor in open_weights_folder(tmp_path / name).tensors.items():  # as evaluations read them
            assert torch.equal(tensor.tensor(), weights[key])
        ours = Transformer(config).eval()
        ours.load_state_dict(weights, strict=True)
        logits.append(our_logits(ours, tokens()))
        fingerprints.append(Manifest.read(open_checkpoint(out)).metadata["imported"]["fingerprint"])
    assert torch.equal(*logits)
    assert fingerprints[0] == fingerprints[1]
    torch.testing.assert_close(logits[0], chameleon_logits(theirs, tokens()), atol=1e-5, rtol=0)


def is_head_norm(name: str) -> bool:
    return "q_norm" in name or "k_norm" in name


def test_settings_survive_import_and_export(tmp_path: Path) -> None:
    hugging_face.save(tmp_path / "theirs")
    hugging_face.edit_json(
        tmp_path / "theirs" / "config.json",
        lambda values: values["rope_parameters"].update(rope_theta=5000.0),
    )
    convert("import", f"source={tmp_path}/theirs", f"out={tmp_path}/ours")
    convert("export", f"checkpoint={tmp_path}/ours", f"out={tmp_path}/back", "dtype=float16")
    imported = ModelConfig(**Manifest.read(open_checkpoint(tmp_path / "ours")).metadata["config"]["model"])
    assert replace(imported, dropout=0.0) == replace(SMALL, rope_theta=5000.0)
    back, _ = load_back(tmp_path / "back")
    assert back.dtype == torch.float16
    assert back.config.rope_parameters["rope_theta"] == 5000.0
    assert back.generation_config.eos_token_id == [2]


@pytest.mark.parametrize("size", [1, 1 << 12])
def test_files_are_bounded_in_size_and_indexed(size: int, tmp_path: Path) -> None:
    from pretrain.convert.exporting import export_weights
    from pretrain.convert.importing import import_weights

    hugging_face.save(tmp_path / "theirs")
    summary = import_weights(tmp_path / "theirs", tmp_path / "ours", size, lambda *_: None)
    manifest = Manifest.read(open_checkpoint(tmp_path / "ours"))
    largest = max(tensor.numel() * 4 for tensor in load_weights(tmp_path / "ours").values())
    header = 4096
    assert len(manifest.files) > 8
    assert max(file.bytes for file in manifest.files.values()) <= max(size, largest) + header
    export_weights(tmp_path / "ours", tmp_path / "back", None, None, size, lambda *_: None)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == summary.bytes
    assert set(index["weight_map"].values()) == {
        path.name for path in (tmp_path / "back").glob("*.safetensors")
    }
    _, info = load_back(tmp_path / "back")
    assert not info["unexpected_keys"]


def test_fingerprint_depends_on_the_content_and_not_on_the_files(tmp_path: Path) -> None:
    from pretrain.convert.importing import import_weights

    hugging_face.save(tmp_path / "a")
    hugging_face.save(tmp_path / "b", shard="1GB")
    hugging_face.save(tmp_path / "c")
    hugging_face.edit_tensors(tmp_path / "c", lambda tensors: tensors["lm_head.weight"][0, 0].add_(1.0))
    fingerprints = [
        import_weights(tmp_path / name, tmp_path / f"{name}_out", 1 << 20, lambda *_: None).fingerprint
        for name in "abc"
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_published_layouts_without_an_image_encoder_and_with_old_rotary_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """WorldVLA's checkpoints: another class name, no vqmodel; old ones keep the rotary embedding's tables."""
    hugging_face.save(tmp_path / "theirs")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "vqmodel" in name]:
            del tensors[name]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    hugging_face.edit_tensors(tmp_path / "theirs", change)
    hugging_face.edit_json(
        tmp_path / "theirs" / "config.json",
        lambda values: values.update(
            architectures=["ChameleonXLLMXForConditionalGeneration"],
            model_type="chameleon_xllmx",
            torch_dtype="bfloat16",
            rope_theta=values.pop("rope_parameters")["rope_theta"],
            z_loss_weight=0.0,
        ),
    )
    convert("import", f"source={tmp_path}/theirs", f"out={tmp_path}/ours")
    printed = capsys.readouterr().out
    assert "left out: 1 tensors tables of the rotary embedding" in printed
    assert "vqmodel" not in printed
    assert load_weights(tmp_path / "ours").keys() == expected_shapes(SMALL).keys()


def test_command_prints_how_to_train_with_the_imported_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hugging_face.save(tmp_path / "theirs", dtype=torch.bfloat16)
    convert("import", f"source={tmp_path}/theirs", f"out={tmp_path}/ours")
    printed = capsys.readouterr().out
    assert "29 tensors (29 bfloat16)" in printed
    assert "tensors of the image encoder (vqmodel)" in printed
    assert f"checkpointing.start_from={tmp_path}/ours model=micro model.vocabulary_size=320" in printed
    assert main(["inspect", "checkpoint", f"path={tmp_path}/ours", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["only_weights"]
    assert described["dtypes"] == {"bfloat16": 29}
    assert described["imported"]["source"] == "theirs"
    assert main(["inspect", "checkpoint", f"path={tmp_path}/ours"]) == 0
    assert "weights alone" in capsys.readouterr().out


def test_names_of_image_codes_are_those_that_transformers_reads() -> None:
    from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

    mapping = ChameleonImageVocabularyMapping(vocabulary_map(65_536, 8192))
    assert mapping.image_token_id == 8711
    assert mapping.img2bpe == {code: 4 + code for code in range(8192)}
    assert code_name(1023) == "IMGIMGBACDZ"


def test_weights_beyond_the_range_of_float16_are_refused(tmp_path: Path) -> None:
    from pretrain.convert.exporting import export_weights

    hugging_face.save(tmp_path / "theirs")
    hugging_face.edit_tensors(tmp_path / "theirs", lambda tensors: tensors["model.norm.weight"][0].fill_(1e6))
    convert("import", f"source={tmp_path}/theirs", f"out={tmp_path}/ours")
    with pytest.raises(InputError, match=r"model.norm.weight: has values beyond 65504"):
        export_weights(tmp_path / "ours", tmp_path / "back", "float16", None, 1 << 20, lambda *_: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"], (
        "no temporary folder is left"
    )


PEAK = """
import sys
from pathlib import Path
from pretrain.convert.{module} import {function}
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

expected_shapes(ModelConfig(layers=1))  # torch imports more for it
Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
before = peak()
{function}(Path(sys.argv[1]), Path(sys.argv[2]), {arguments}, lambda *_: None)
print(peak() - before)
"""


def _peak(module: str, function: str, arguments: str, source: Path, out: Path) -> int:
    """Peak memory in bytes of a conversion, above that at its start."""
    program = PEAK.format(module=module, function=function, arguments=arguments)
    command = [sys.executable, "-c", program, str(source), str(out)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_peak_memory_stays_below_one_file(tmp_path: Path) -> None:
    config = ModelConfig(vocabulary_size=16_384, hidden_size=1024, ffn_size=2752, layers=7, heads=8)
    header: dict[str, Any] = {}
    total = 0
    for name, shape in expected_shapes(config).items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [total, total + size]}
        total += size
    text = json.dumps(header).encode()
    source = tmp_path / "theirs"
    source.mkdir()
    with (source / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + total)  # a sparse file of zeros
    sizes = {"vocab_size": 16_384, "hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 7}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    (source / "config.json").write_text(json.dumps(sizes | heads))
    file_bytes = 64_000_000
    largest = 4 * 16_384 * 1024
    assert total > 230e6
    peak = _peak("importing", "import_weights", str(file_bytes), source, tmp_path / "ours")
    assert peak < file_bytes / 2, f"{peak:,} bytes to import {total:,}"
    peak = _peak(
        "exporting", "export_weights", f"'float32', None, {1 << 30}", tmp_path / "ours", tmp_path / "back"
    )
    assert peak < 2 * largest, f"{peak:,} bytes to export {2 * total:,}"
