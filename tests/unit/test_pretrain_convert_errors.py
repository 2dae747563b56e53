"""Weights that are not what they say: each is named before anything is written; nothing is left behind."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain.checkpoint.pieces import PieceTable

from cluster.cli.main import main
from data.errors import InputError
from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import Manifest, StoredTensor, pieces_file
from pretrain.checkpoint.verification import describe, describe_file
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
    """A copy to spoil."""
    shutil.copytree(whole, tmp_path / "theirs")
    return tmp_path / "theirs"


def refused(folder: Path) -> str:
    """The error of an import, which leaves no trace."""
    before = sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(InputError) as caught:
        import_weights(folder, folder.parent / "ours", 1 << 20, lambda *_: None)
    assert sorted(path.name for path in folder.parent.iterdir()) == before
    return str(caught.value)


def test_missing_extra_and_misshapen_tensors_are_listed_with_their_number(folder: Path) -> None:
    def change(found: dict[str, torch.Tensor]) -> None:
        for name in [name for name in found if ".layers.1.mlp." in name]:
            found[name.replace("mlp", "moe")] = found.pop(name)
        found["model.norm.weight"] = torch.ones(31)

    edit_tensors(folder, change)
    message = refused(folder)
    assert "3 missing: model.layers.1.mlp.gate_proj.weight, " in message
    assert "3 not of the network: model.layers.1.moe." in message
    assert "1 of another shape: model.norm.weight [31], expected [32]" in message
    edit_json(folder / "config.json", lambda values: values.update(num_hidden_layers=1))
    message = refused(folder)
    assert "13 not of the network: model.layers.1." in message
    assert " and 8 more; 1 of another shape" in message


@pytest.mark.parametrize("shape", [(8,), (32,), (1, 8), (8, 4)], ids=str)
def test_only_one_layout_of_the_head_norms_is_taken(shape: tuple[int, ...], folder: Path) -> None:
    name = "model.layers.0.self_attn.q_norm.weight"
    edit_tensors(folder, lambda found: found.update({name: torch.ones(shape)}))
    assert f"1 of another shape: {name} {list(shape)}, expected [4, 8]" in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_numbers_that_are_not_finite_are_refused(dtype: torch.dtype, value: float, folder: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def change(found: dict[str, torch.Tensor]) -> None:
        found[name] = torch.full_like(found[name], -torch.finfo(dtype).max, dtype=dtype)  # which is finite

    edit_tensors(folder, change)
    import_weights(folder, folder.parent / "finite", 1 << 20, lambda *_: None)
    edit_tensors(folder, lambda found: found[name][-1, -1].fill_(value))
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
        (b'{"vocab_size": 8, "vocab_size": 9}', "the key 'vocab_size' comes twice"),
        (b"[" * 100_000, "not valid JSON"),
    ],
    ids=["list", "torn", "bytes", "twice", "deep"],
)
def test_settings_that_are_no_object_are_refused(content: bytes, expected: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert expected in refused(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin"])
def test_an_index_may_not_point_elsewhere(name: str, folder: Path) -> None:
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
def test_an_index_that_does_not_fit_its_files(
    change: Callable[[Any], None], expected: str, folder: Path
) -> None:
    assert (folder / FIRST).is_file()
    edit_json(folder / INDEX, change)
    assert expected in refused(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    first, *_, last = sorted(folder.glob("*.safetensors"))
    both = hugging_face.load_file(first) | hugging_face.load_file(last)
    hugging_face.save_file(both, last)
    assert "lies in 2 files" in refused(folder)


def _lie(values: dict[str, Any]) -> None:
    values["lm_head.weight"]["shape"][0] += 1


def _overlap(values: dict[str, Any]) -> None:
    values["lm_head.weight"]["data_offsets"] = values["model.norm.weight"]["data_offsets"]


def _beyond(values: dict[str, Any]) -> None:
    values["lm_head.weight"]["data_offsets"][1] += 1 << 40


def _integers(values: dict[str, Any]) -> None:
    values["lm_head.weight"]["dtype"] = "I32"


@pytest.mark.parametrize("change", [_lie, _overlap, _beyond, _integers])
def test_a_header_that_lies_is_refused(change: Callable[[Any], None], folder: Path) -> None:
    edit_tensors(folder, lambda _: None)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    message = refused(folder)
    assert "not a complete safetensors file" in message or "lm_head.weight is of dtype I32" in message


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_torn_file_is_refused(content: bytes, folder: Path) -> None:
    edit_tensors(folder, lambda _: None)
    (folder / "model.safetensors").write_bytes(content)
    assert "not a complete safetensors file" in refused(folder)


def test_pickles_are_refused_unread(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    message = refused(folder)
    assert "weights as pickle (pytorch_model.bin)" in message
    assert "safe_serialization=True" in message
    (folder / "pytorch_model.bin").unlink()
    assert "is the download complete?" in refused(folder)


def test_what_stands_at_out_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "ours"
    out.mkdir()
    (out / "mine").write_text("precious")
    words = ["convert", "import", f"source={folder}", f"out={out}"]
    assert main(words) == 2
    assert "exists and is not empty; name a new folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    assert main(words) == 0, "an empty folder is taken"


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    ("words", "expected"),
    [
        (["import", "source=nowhere", "out=x"], "source=nowhere: expected a folder"),
        (["import", "source=.", "out=x"], "no config.json there"),
        (["import", "source=.", "out=x", "shard_megabytes=0"], "shard_megabytes=0, expected at least 1"),
        (["export", "checkpoint=nowhere", "out=x"], "nowhere: no committed checkpoint"),
        (["export", "checkpoint=.", "out=x", "dtype=int8"], "dtype=int8, expected one of float32"),
        (["import", "source=."], "no value for out"),
    ],
)
def test_wrong_words_are_told_in_one_line(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_a_damaged_checkpoint_is_not_exported(folder: Path) -> None:
    ours, back = folder.parent / "ours", folder.parent / "back"
    import_weights(folder, ours, 1 << 20, lambda *_: None)
    path = ours / "rank_00000.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"damaged: rank_00000\.safetensors differs from its checksum"):
        export_weights(ours, back, None, None, 1 << 20, lambda *_: None)
    assert not back.exists()


def test_a_checkpoint_without_settings_or_of_other_settings_is_not_exported(folder: Path) -> None:
    ours, back = folder.parent / "ours", folder.parent / "back"
    import_weights(folder, ours, 1 << 20, lambda *_: None)
    manifest = Manifest.read(open_checkpoint(ours))

    def rewritten(**changes: Any) -> str:
        model = manifest.metadata["config"]["model"] | changes
        metadata = {"config": {"model": model}} if changes else {}
        Manifest(0, 0, metadata, manifest.tensors, manifest.files).write(ours)
        with pytest.raises(InputError) as caught:
            export_weights(ours, back, None, None, 1 << 20, lambda *_: None)
        return str(caught.value)

    assert "no settings of the model" in rewritten()
    assert "transformers' Chameleon has 1e-05" in rewritten(norm_eps=1e-6)
    assert "13 missing: model.layers.2.self_attn.q_proj.weight, " in rewritten(layers=3)


def test_pieces_that_do_not_make_up_a_tensor_are_not_exported(folder: Path) -> None:
    ours = folder.parent / "ours"
    import_weights(folder, ours, 1 << 20, lambda *_: None)
    store = open_checkpoint(ours)
    manifest, name = Manifest.read(store), "model.norm.weight"
    table = manifest.table(store.url, manifest.read_pieces(store))
    others = [
        (number, piece.writer, piece.box)
        for other, number in manifest.parameters.items()
        for piece in manifest.pieces(table, other)
        if other != name
    ]

    def exported(dtype: str, *boxes: Box) -> str:
        rows = [*others, *((manifest.parameters[name], 0, box) for box in boxes)]
        pieces = PieceTable.of(rows, 2).encode()
        (ours / pieces_file()).write_bytes(pieces)
        tensors = {**manifest.tensors, f"master/{name}": StoredTensor((32,), dtype)}
        files = {**manifest.files, pieces_file(): describe(pieces)}
        Manifest(0, 0, manifest.metadata, tensors, files).write(ours)
        with pytest.raises(InputError) as caught:
            export_weights(ours, folder.parent / "back", None, None, 1 << 20, lambda *_: None)
        return str(caught.value)

    told = "rank_00000.safetensors does not hold model.norm.weight as its manifest says"
    assert told in exported("bfloat16", Box((0,), (32,)))
    assert told in exported("float32", Box((0,), (16,)), Box((16,), (16,)))
    wrong = "the pieces of model.norm.weight do not make it up"
    assert wrong in exported("float32", Box((0,), (32,)), Box((16,), (16,)))
    assert wrong in exported("float32")


def test_what_is_in_the_way_of_an_export_is_told_before_files_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = folder.parent / "ours"
    import_weights(folder, ours, 1 << 20, lambda *_: None)
    monkeypatch.setattr("pretrain.convert.exporting.damaged", lambda *_: pytest.fail("read all of it"))
    with pytest.raises(InputError, match="exists and is not empty"):
        export_weights(ours, folder, None, None, 1 << 20, lambda *_: None)
    with pytest.raises(InputError, match="cannot read the image tokenizer"):
        export_weights(ours, folder.parent / "back", None, folder / "no.safetensors", 1, lambda *_: None)


def test_weights_that_were_not_imported_are_told_the_way(folder: Path) -> None:
    with pytest.raises(InputError, match=f"come in by: worldvla convert import source={folder} out="):
        Manifest.read(open_checkpoint(folder))


def test_a_dtype_that_no_reader_knows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rank_00000.safetensors"
    file.write_bytes(b"x")
    tensor = StoredTensor((1,), "float8")
    Manifest(0, 0, {}, {"master/a": tensor}, {file.name: describe_file(file)}).write(tmp_path)
    with pytest.raises(InputError, match="float8"):
        Manifest.read(open_checkpoint(tmp_path))
