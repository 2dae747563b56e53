"""Invalid weights: each error is reported before anything is written, and no file is left."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.cli.main import main
from data.errors import InputError
from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.chunks import ChunkTable
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import Manifest, StoredFile, StoredTensor, chunk_table_file
from pretrain.convert.exporting import export_weights
from pretrain.convert.importing import import_weights
from tests.support import hugging_face
from tests.support.hugging_face import edit_json, edit_tensors

FIRST = "model-00001-of-00021.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "theirs"
    hugging_face.save(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(whole, tmp_path / "theirs")
    return tmp_path / "theirs"


def refused(folder: Path) -> str:
    """The error of an import, which leaves no file."""
    before = sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(InputError) as caught:
        import_weights(folder, folder.parent / "ours", 1 << 20, lambda *_: None)
    assert sorted(path.name for path in folder.parent.iterdir()) == before
    return str(caught.value)


def test_missing_extra_and_misshapen_tensors_are_listed_and_counted(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".layers.1.mlp." in name]:
            tensors[name.replace("mlp", "moe")] = tensors.pop(name)
        tensors["model.norm.weight"] = torch.ones(31)

    edit_tensors(folder, change)
    message = refused(folder)
    assert "3 missing: model.layers.1.mlp.gate_proj.weight, " in message
    assert "3 not of the network: model.layers.1.moe." in message
    assert "1 of another shape: model.norm.weight [31], expected [32]" in message
    edit_json(folder / "config.json", lambda values: values.update(num_hidden_layers=1))
    message = refused(folder)
    assert "13 not of the network: model.layers.1." in message
    assert " and 8 more; 1 of another shape" in message


@pytest.mark.parametrize("shape", [(8,), (32,), (3, 8), (8, 8), (1, 4), (8, 4)], ids=str)
def test_other_shapes_of_the_head_norms_are_refused(shape: tuple[int, ...], folder: Path) -> None:
    name = "model.layers.0.self_attn.q_norm.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(shape)}))
    assert f"1 of another shape: {name} {list(shape)}, expected [4, 8]" in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_infinite_and_nan_weights_are_refused(dtype: torch.dtype, value: float, folder: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.full_like(tensors[name], -torch.finfo(dtype).max, dtype=dtype)  # finite

    edit_tensors(folder, change)
    import_weights(folder, folder.parent / "finite", 1 << 20, lambda *_: None)
    edit_tensors(folder, lambda tensors: tensors[name][-1, -1].fill_(value))
    assert f"{name} holds infinite values or NaN" in refused(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden_size": "32"}, "hidden_size='32', expected an integer from 1"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers=2.0, expected an integer"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, expected an integer from 1 to 1000"),
        ({"vocab_size": True}, "vocab_size=True, expected an integer"),
        ({"num_attention_heads": 0}, "num_attention_heads=0, expected an integer"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "model.heads=5"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', expected 'silu'"),
        ({"attention_bias": True}, "attention_bias=True, expected False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True, expected False"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06, expected 1e-05"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "expected the rope_type 'default'"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta=nan, expected a number above 1"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling="),
        ({"swin_norm": "yes"}, "swin_norm='yes', expected true or false"),
        ({"model_type": "llama"}, "model_type='llama', expected 'chameleon'"),
        ({"head_dim": 16}, "head_dim=16, expected hidden_size / num_attention_heads"),
    ],
)
def test_settings_of_another_network_are_named(change: dict[str, Any], expected: str, folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values.update(change))
    assert expected in refused(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[]", "expected a JSON object"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"vocab_size": 8, "vocab_size": 9}', "the key 'vocab_size' occurs twice"),
        (b"[" * 100_000, "not valid JSON"),
    ],
    ids=["list", "torn", "bytes", "twice", "deep"],
)
def test_settings_that_are_no_json_object_are_refused(content: bytes, expected: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert expected in refused(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin"])
def test_index_cannot_name_files_in_other_folders(name: str, folder: Path) -> None:
    (folder.parent / "secret.safetensors").write_bytes(b"")
    edit_json(folder / INDEX, lambda values: values["weight_map"].update({"lm_head.weight": name}))
    assert f"names the file {name!r}, expected *.safetensors in the same folder" in refused(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda values: values.pop("weight_map"), "no weight_map"),
        (lambda values: values.update(weight_map={"a": 3}), "no weight_map"),
        (
            lambda values: values["weight_map"].pop("model.norm.weight"),
            "model.norm.weight is not in the index",
        ),
        (
            lambda values: values["weight_map"].update({"new": "model-00001-of-00021.safetensors"}),
            "new is not in",
        ),
        (
            lambda values: values["weight_map"].update({"new": "other.safetensors"}),
            "other.safetensors missing; is the download complete?",
        ),
    ],
    ids=["none", "numbers", "unlisted", "listed only", "no file"],
)
def test_index_that_does_not_fit_its_files_is_refused(
    change: Callable[[Any], None], expected: str, folder: Path
) -> None:
    assert (folder / FIRST).is_file()
    edit_json(folder / INDEX, change)
    assert expected in refused(folder)


def test_tensor_in_two_files_is_refused(folder: Path) -> None:
    first, *_, last = sorted(folder.glob("*.safetensors"))
    both = hugging_face.load_file(first) | hugging_face.load_file(last)
    hugging_face.save_file(both, last)
    assert "is in 2 files" in refused(folder)


def _wrong_shape(values: dict[str, Any]) -> None:
    values["lm_head.weight"]["shape"][0] += 1


def _overlap(values: dict[str, Any]) -> None:
    values["lm_head.weight"]["data_offsets"] = values["model.norm.weight"]["data_offsets"]


def _beyond(values: dict[str, Any]) -> None:
    values["lm_head.weight"]["data_offsets"][1] += 1 << 40


def _integers(values: dict[str, Any]) -> None:
    values["lm_head.weight"]["dtype"] = "I32"


@pytest.mark.parametrize("change", [_wrong_shape, _overlap, _beyond, _integers])
def test_inconsistent_header_is_refused(change: Callable[[Any], None], folder: Path) -> None:
    edit_tensors(folder, lambda _: None)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    message = refused(folder)
    assert "not a complete safetensors file" in message or "lm_head.weight is of dtype int32" in message


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_truncated_file_is_refused(content: bytes, folder: Path) -> None:
    edit_tensors(folder, lambda _: None)
    (folder / "model.safetensors").write_bytes(content)
    assert "not a complete safetensors file" in refused(folder)


def test_pickles_are_refused_without_being_read(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    message = refused(folder)
    assert "weights as pickle (pytorch_model.bin)" in message
    assert "safe_serialization=True" in message
    (folder / "pytorch_model.bin").unlink()
    assert "is the download complete?" in refused(folder)


def test_existing_output_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "ours"
    out.mkdir()
    (out / "mine").write_text("precious")
    arguments = ["convert", "import", f"source={folder}", f"out={out}"]
    assert main(arguments) == 2
    assert "exists and is not empty; name a new folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    assert main(arguments) == 0, "an empty folder is accepted"


def test_full_disk_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.convert.tensor_files.os.fsync", _no_space)
    assert "No space left on device" in refused(folder)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("pretrain.convert.importing.shutil.disk_usage", lambda _: usage)
    assert "1,000 are free there; make room" in refused(folder)
    killed = folder.parent / ".tmp-ours-0123abcd"
    killed.mkdir()
    assert f"1,000 are free there; remove {killed}" in refused(folder)


def _no_space(_: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["import", "source=nowhere", "out=x"], "source=nowhere: expected a folder"),
        (["import", "source=.", "out=x"], "no config.json there"),
        (["import", "source=.", "out=x", "shard_megabytes=0"], "shard_megabytes=0, expected at least 1"),
        (["export", "checkpoint=nowhere", "out=x"], "nowhere: no committed checkpoint"),
        (["export", "checkpoint=.", "out=x", "dtype=int8"], "dtype=int8, expected one of float32"),
        (["import", "source=."], "no value for out"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_damaged_checkpoint_is_not_exported(folder: Path) -> None:
    ours, back = folder.parent / "ours", folder.parent / "back"
    import_weights(folder, ours, 1 << 20, lambda *_: None)
    path = ours / "rank_00000.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"damaged: rank_00000\.safetensors differs from its checksum"):
        export_weights(ours, back, None, None, 1 << 20, lambda *_: None)
    assert not back.exists()


def test_checkpoint_without_settings_or_with_wrong_settings_is_not_exported(folder: Path) -> None:
    ours, back = folder.parent / "ours", folder.parent / "back"
    import_weights(folder, ours, 1 << 20, lambda *_: None)
    manifest = Manifest.read(open_checkpoint(ours))

    def error_with(**changes: Any) -> str:
        model = manifest.metadata["config"]["model"] | changes
        metadata = {"config": {"model": model}} if changes else {}
        Manifest(0, 0, metadata, manifest.tensors, manifest.files).write(ours)
        with pytest.raises(InputError) as caught:
            export_weights(ours, back, None, None, 1 << 20, lambda *_: None)
        return str(caught.value)

    assert "no settings of the model" in error_with()
    assert "transformers' Chameleon has 1e-05" in error_with(norm_eps=1e-6)
    assert "13 missing: model.layers.2.self_attn.q_proj.weight, " in error_with(layers=3)


def test_chunks_that_do_not_make_up_a_tensor_are_not_exported(folder: Path) -> None:
    ours = folder.parent / "ours"
    import_weights(folder, ours, 1 << 20, lambda *_: None)
    store = open_checkpoint(ours)
    manifest, name = Manifest.read(store), "model.norm.weight"
    table = manifest.chunk_table(store.url, manifest.read_chunk_table(store))
    others = [
        (number, chunk.writer, chunk.box)
        for other, number in manifest.parameter_numbers.items()
        for chunk in manifest.chunks(table, other)
        if other != name
    ]

    def error_with(dtype: str, *boxes: Box) -> str:
        rows = [*others, *((manifest.parameter_numbers[name], 0, box) for box in boxes)]
        content = ChunkTable.of(rows, 2).encode()
        (ours / chunk_table_file()).write_bytes(content)
        tensors = {**manifest.tensors, f"master/{name}": StoredTensor((32,), dtype)}
        files = {**manifest.files, chunk_table_file(): StoredFile.of(content)}
        Manifest(0, 0, manifest.metadata, tensors, files).write(ours)
        with pytest.raises(InputError) as caught:
            export_weights(ours, folder.parent / "back", None, None, 1 << 20, lambda *_: None)
        return str(caught.value)

    mismatch = "rank_00000.safetensors does not hold model.norm.weight as its manifest says"
    assert mismatch in error_with("bfloat16", Box((0,), (32,)))
    assert mismatch in error_with("float32", Box((0,), (16,)), Box((16,), (16,)))
    incomplete = "the chunks of model.norm.weight do not make it up"
    assert incomplete in error_with("float32", Box((0,), (32,)), Box((16,), (16,)))
    assert incomplete in error_with("float32")


def test_obstacles_to_an_export_are_reported_before_files_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = folder.parent / "ours"
    import_weights(folder, ours, 1 << 20, lambda *_: None)
    monkeypatch.setattr("pretrain.convert.exporting.find_damage", lambda *_: pytest.fail("read all of it"))
    with pytest.raises(InputError, match="exists and is not empty"):
        export_weights(ours, folder, None, None, 1 << 20, lambda *_: None)
    with pytest.raises(InputError, match="cannot read the image tokenizer"):
        export_weights(ours, folder.parent / "back", None, folder / "no.safetensors", 1, lambda *_: None)


def test_error_about_weights_that_were_not_imported_says_how_to_import_them(folder: Path) -> None:
    with pytest.raises(InputError, match=f"by: worldvla convert import source={folder} out="):
        Manifest.read(open_checkpoint(folder))


def test_manifest_with_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rank_00000.safetensors"
    file.write_bytes(b"x")
    tensor = StoredTensor((1,), "float8")
    Manifest(0, 0, {}, {"master/a": tensor}, {file.name: StoredFile.of_path(file)}).write(tmp_path)
    with pytest.raises(InputError, match="float8"):
        Manifest.read(open_checkpoint(tmp_path))
