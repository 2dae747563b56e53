"""A new run starts with the weights of any checkpoint, in any layout, at step 0 and with fresh moments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.errors import InputError
from pretrain.checkpoint import load as loading
from pretrain.checkpoint.fragments import fragments, optimizer_step, state_names
from pretrain.checkpoint.load import load, load_initial_weights
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.checkpoint.weights import load_weights
from pretrain.config import TrainingConfig
from pretrain.convert.exporting import export_weights
from pretrain.convert.importing import import_weights
from pretrain.model.attention.choose import packed_mask
from pretrain.model.transformer import Transformer, initialise
from pretrain.settings import to_mapping
from tests.support import checkpoint_case as case
from tests.support import hugging_face
from tests.support.ranks import run_ranks

READERS = [(2, 2, 3), (1, 2, 1), (1, 1, 2), (4, 1, 3)]


def num_ranks(layout: case.Layout) -> int:
    return layout[0] * layout[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint of step 3 at TP2 x DP2."""
    root = tmp_path_factory.mktemp("written")
    run_ranks(case.train_and_save, 4, case.config((2, 2, 3)), root, [3], 3)
    checkpoint = case.latest(root)
    assert checkpoint is not None
    return checkpoint


def _start(checkpoint: Path, layout: case.Layout, root: Path) -> list[float]:
    """Start from the checkpoint, save it again, train two steps; return the losses."""
    settings = case.config(layout)
    settings.trainer.seed = 4  # other random weights than those the checkpoint was trained from
    engine = case.build(settings)
    load_initial_weights(checkpoint, engine)
    assert (engine.step_count, optimizer_step(engine)) == (0, 0)
    local = list(fragments(engine))
    assert local
    _, *moments = state_names(engine)
    assert moments
    assert not any(fragment.states[moment].any() for fragment in local for moment in moments)
    writer = CheckpointWriter(root, engine)
    writer.save(0, {})
    writer.wait()
    return case.steps(engine, 2)


def test_any_layout_starts_with_the_same_weights(written: Path, tmp_path: Path) -> None:
    losses = {}
    expected = load_weights(written)
    for layout in READERS:
        root = tmp_path / str(layout)
        losses[layout] = run_ranks(_start, num_ranks(layout), written, layout, root)[0]
        loaded = load_weights(root / "step_00000000")
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected), layout
    first = losses[READERS[0]]
    assert all(abs(a - b) < 1e-5 for other in losses.values() for a, b in zip(other, first, strict=True))


def test_imported_bf16_weights_start_any_layout(tmp_path: Path) -> None:
    settings = case.config((1, 1, 1))
    hugging_face.save(tmp_path / "theirs", settings.model, dtype=torch.bfloat16)
    import_weights(tmp_path / "theirs", tmp_path / "ours", 20_000, lambda *_: None)
    assert {
        tensor.dtype for tensor in Manifest.read(open_checkpoint(tmp_path / "ours")).tensors.values()
    } == {"bfloat16"}
    theirs = hugging_face.network(hugging_face.tensors(tmp_path / "theirs"))
    for layout in [(2, 2, 3), (1, 2, 1)]:
        root = tmp_path / str(layout)
        run_ranks(_start, num_ranks(layout), tmp_path / "ours", layout, root)
        loaded = load_weights(root / "step_00000000")
        head = {name: loaded.pop(name) for name in list(loaded) if name.startswith("action_head.")}
        assert loaded.keys() == theirs.keys()
        assert all(torch.equal(loaded[name], theirs[name].float()) for name in theirs), layout
        fresh = Transformer(settings.model)
        initialise(fresh, seed=4)
        assert fresh.action_head is not None
        expected = fresh.action_head.state_dict(prefix="action_head.")
        assert head.keys() == expected.keys()
        assert all(torch.equal(head[name], expected[name]) for name in expected), layout
    (message,) = run_ranks(_resume, 1, tmp_path / "ours")
    assert "without moments" in message
    assert "checkpointing.start_from" in message


def _resume(checkpoint: Path) -> str:
    try:
        load(checkpoint, case.build(case.config((1, 1, 1))))
    except InputError as error:
        return str(error)
    return "no error"


def _train_and_save(root: Path) -> None:
    settings = case.config((2, 2, 3))
    engine = case.build(settings)
    case.steps(engine, 3)
    writer = CheckpointWriter(root, engine)
    writer.save(3, {"config": to_mapping(settings)})
    writer.wait()


def test_training_of_four_ranks_is_exported_with_the_same_weights_and_logits(tmp_path: Path) -> None:
    from transformers import ChameleonForConditionalGeneration

    run_ranks(_train_and_save, 4, tmp_path / "run")
    checkpoint = tmp_path / "run" / "step_00000003"
    store = open_checkpoint(checkpoint)
    manifest = Manifest.read(store)
    table = manifest.chunk_table(store.url, manifest.read_chunk_table(store))
    chunks = manifest.chunks(table, "model.layers.0.self_attn.q_proj.weight")
    assert {chunk.writer for chunk in chunks} == {0, 1, 2, 3}, "every rank wrote some"
    export_weights(checkpoint, tmp_path / "back", "float32", None, 30_000, lambda *_: None)
    weights = load_weights(checkpoint)
    assert hugging_face.bitwise(hugging_face.tensors(tmp_path / "back"), weights)
    ours = Transformer(case.config((1, 1, 1)).model).eval()
    ours.load_state_dict(weights)
    theirs = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "back")
    tokens = torch.randint(10, 250, (2, case.LENGTH), generator=torch.Generator().manual_seed(5))
    positions = torch.arange(case.LENGTH).expand(tokens.shape)
    mask = packed_mask(torch.ones_like(tokens), torch.zeros_like(tokens), ours.config, tokens.device)
    with torch.no_grad():
        logits, expected = theirs.eval()(input_ids=tokens).logits, ours(tokens, positions, mask)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    export_weights(checkpoint, tmp_path / "halves", None, None, 30_000, lambda *_: None)
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    assert hugging_face.bitwise(hugging_face.tensors(tmp_path / "halves"), halves), (
        "bfloat16 is a training's default"
    )


def _refused(checkpoint: Path, settings: TrainingConfig, only_names: bool = True) -> str:
    """The error of a start; with `only_names` only the manifest may be read before it."""
    engine = case.build(settings)
    if only_names:
        loading.SafetensorsReader = lambda *_: pytest.fail("read before names and shapes were compared")
    try:
        load_initial_weights(checkpoint, engine)
    except InputError as error:
        return str(error)
    return "no error"


def test_differences_to_another_network_are_listed_before_weights_are_read(written: Path) -> None:
    settings = case.config((2, 1, 3))
    settings.model.layers = 1
    settings.model.ffn_size = 48
    messages = run_ranks(_refused, 2, written, settings)
    assert len(set(messages)) == 1, "the same on every rank"
    assert "model.layers.1.input_layernorm.weight is not in this model" in messages[0]
    assert "more; give the model.*" in messages[0]


def test_wrong_shape_is_named_with_both_shapes(written: Path) -> None:
    settings = case.config((1, 2, 3))
    settings.model.vocabulary_size += 8
    messages = run_ranks(_refused, 2, written, settings)
    assert len(set(messages)) == 1
    assert "lm_head.weight is [264, 32] there, [272, 32] here" in messages[0]


def test_damaged_file_is_named(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / written.name
    copy.mkdir()
    for file in written.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    broken = case.file(copy, 1)
    broken.write_bytes(broken.read_bytes()[:-1] + b"\xff")
    (message,) = run_ranks(_refused, 1, copy, case.config((1, 1, 1)), False)
    assert f"damaged: {broken.name} differs from its checksum" in message
