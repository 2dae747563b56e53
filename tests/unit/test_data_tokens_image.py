"""Image tokenizer: the same network as Chameleon's, exact saving, refusal of invalid input."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import cast
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import InputError
from data.tokens import image
from data.tokens.image import ImageTokenizer, frames_to_tensor, tensor_to_frames
from data.tokens.image_model import ImageModel, ImageModelConfig

SMALL = ImageModelConfig(
    pixels=16,
    codebook_size=32,
    embedding_size=4,
    latent_channels=8,
    base_channels=8,
    channel_multiplier=(1, 2),
    residual_blocks=1,
    norm_groups=4,
)


def small_tokenizer(seed: int = 0) -> ImageTokenizer:
    torch.manual_seed(seed)
    model = ImageModel(SMALL)
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return ImageTokenizer(model)


def random_frames(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_chameleon_encoder_weights_give_chameleons_codes() -> None:
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    torch.manual_seed(0)
    reference = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=16, num_embeddings=64, latent_channels=32, resolution=32, base_channels=32,
            channel_multiplier=[1, 2, 2], num_res_blocks=2, attn_resolutions=[16],
        )
    ).eval()  # fmt: skip
    torch.nn.init.normal_(reference.quantize.embedding.weight)
    ours = ImageModel(
        ImageModelConfig(
            pixels=32, codebook_size=64, embedding_size=16, latent_channels=32, base_channels=32,
            channel_multiplier=(1, 2, 2), residual_blocks=2, attention_resolutions=(16,),
        )
    ).eval()  # fmt: skip
    missing, unexpected = ours.load_state_dict(reference.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in missing)
    frames = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = reference.encode(cast("torch.LongTensor", frames)).image_tokens
        found = ours.encode(frames)
    assert expected is not None
    assert torch.equal(found.flatten(), expected.flatten())


def test_decoder_names_are_those_of_the_taming_checkpoint() -> None:
    names = set(ImageModel(SMALL).state_dict())
    assert {
        "decoder.conv_in.weight",
        "decoder.mid.attn_1.proj_out.bias",
        "decoder.up.1.block.1.norm2.weight",
        "decoder.up.1.upsample.conv.weight",
        "decoder.up.0.block.0.nin_shortcut.weight",
        "decoder.norm_out.bias",
        "post_quant_conv.weight",
        "quantize.embedding.weight",
    } <= names
    assert "decoder.up.0.upsample.conv.weight" not in names


def test_saved_tokenizer_is_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.save(tmp_path / "a.safetensors")
    loaded = ImageTokenizer.load(tmp_path / "a.safetensors")
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert loaded.sha256 == tokenizer.sha256 != small_tokenizer(1).sha256
    frames = random_frames(70, 16)  # more than one batch
    codes = loaded.encode(frames)
    assert codes.dtype == np.uint16
    assert codes.shape == (70, loaded.rows, loaded.columns) == (70, 8, 8)
    assert len(np.unique(codes)) > 4
    np.testing.assert_array_equal(codes, tokenizer.encode(frames))
    np.testing.assert_array_equal(loaded.decode(codes), tokenizer.decode(codes))


def test_weights_that_are_read_are_not_written_again_for_their_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.safetensors"
    small_tokenizer(0).save(path)
    written = mock.Mock(wraps=image.save_tensors)
    monkeypatch.setattr(image, "save_tensors", written)
    assert ImageTokenizer.load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not written.called


def test_frames_are_equal_after_conversion_to_tensors_and_back() -> None:
    frames = random_frames(2, 8)
    np.testing.assert_array_equal(tensor_to_frames(frames_to_tensor(frames)), frames)


def test_codes_are_the_nearest_entries() -> None:
    model = ImageModel(SMALL)
    entries = torch.randn(32, 4)
    model.quantize.embedding.weight.data = entries
    z = torch.randn(5, 4)
    assert torch.equal(model.quantize.nearest(z), torch.cdist(z, entries).argmin(1))


def test_shipped_tokenizer_has_the_documented_size_and_is_small() -> None:
    tokenizer = ImageTokenizer.load()
    assert (tokenizer.pixels, tokenizer.rows, tokenizer.columns) == (64, 8, 8)
    assert tokenizer.codebook_size == 1024
    assert len(tokenizer._serialised()) <= 4_000_000
    assert tokenizer.encode(random_frames(0, 64)).shape == (0, 8, 8)


@pytest.mark.parametrize(
    "frames",
    [random_frames(1, 32), random_frames(1, 16)[0], random_frames(1, 16).astype(np.float32)],
    ids=["side", "rank", "dtype"],
)
def test_wrong_frames_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected uint8"):
        small_tokenizer().encode(frames)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.full((1, 8, 8), 32), "range from 32 to 32"),
        (np.full((1, 8, 8), -1), "range from -1"),
        (np.zeros((1, 4, 8), np.int64), "shape"),
    ],
)
def test_wrong_codes_are_refused(codes: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_tokenizer().decode(codes)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        ImageTokenizer.load(tmp_path / "absent.safetensors")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="not a complete safetensors file"):
        ImageTokenizer.load(garbage)
    bare = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(1)}, bare)
    with pytest.raises(InputError, match="no valid image tokenizer settings in its header"):
        ImageTokenizer.load(bare)
    good = tmp_path / "good.safetensors"
    small_tokenizer().save(good)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        ImageTokenizer.load(cut)


@pytest.mark.parametrize(
    "change", [{"codebook_size": 1 << 20}, {"base_channels": 0}, {"channel_multiplier": 3}]
)
def test_absurd_settings_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    good = tmp_path / "good.safetensors"
    small_tokenizer().save(good)
    settings = json.loads(json.dumps({**vars(SMALL), **change}))
    save_file(load_file(good), tmp_path / "bad.safetensors", {"image_model": json.dumps(settings)})
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        ImageTokenizer.load(tmp_path / "bad.safetensors")


def test_tensors_of_other_shapes_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    small_tokenizer().save(good)
    tensors = load_file(good)
    del tensors["quantize.embedding.weight"]
    save_file(tensors, tmp_path / "bad.safetensors", {"image_model": json.dumps(vars(SMALL))})
    with pytest.raises(InputError, match=r"1 tensors do not fit.*quantize\.embedding\.weight"):
        ImageTokenizer.load(tmp_path / "bad.safetensors")
