"""Chameleon's vqgan.ckpt: encoder as in transformers, decoder as "Taming Transformers" publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from cluster.cli.main import main
from data.errors import InputError
from data.tokens.image import ImageTokenizer
from data.tokens.image_import import import_image_tokenizer
from data.tokens.image_model import ImageModel, ImageModelConfig
from tests.support.vqgan_decoder import published_decoder

SMALL = ImageModelConfig(
    pixels=32,
    codebook_size=64,
    embedding_size=8,
    latent_channels=16,
    base_channels=32,
    channel_multiplier=(1, 2, 2),
    residual_blocks=2,
    attention_resolutions=(16,),
)


def settings(config: ImageModelConfig) -> dict[str, Any]:
    """The content of vqgan.yaml, as Chameleon's is laid out."""
    return {
        "model": {
            "target": "taming.models.vqgan.VQModel",
            "params": {
                "embed_dim": config.embedding_size,
                "n_embed": config.codebook_size,
                "lossconfig": {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"},
                "ckpt_path": "vqgan.ckpt",
                "ddconfig": {
                    "double_z": False,
                    "z_channels": config.latent_channels,
                    "resolution": config.pixels,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": config.base_channels,
                    "ch_mult": list(config.channel_multiplier),
                    "num_res_blocks": config.residual_blocks,
                    "attn_resolutions": list(config.attention_resolutions),
                    "dropout": 0.0,
                },
            },
        }
    }


def weights(config: ImageModelConfig = SMALL, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state_dict in the names of the original, with random norms and codes."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        found = {name: tensor.clone() for name, tensor in ImageModel(config).state_dict().items()}
    for name, tensor in found.items():
        if "norm" in name:
            tensor.add_(torch.randn_like(tensor) * 0.2)
    found["quantize.embedding.weight"].normal_(std=4.0)
    found["quant_conv.weight"].mul_(60.0)  # so that frames need many codes
    found["loss.discriminator.main.0.weight"] = torch.ones(4)
    found["loss.perceptual_loss.lin0.model.1.weight"] = torch.ones(4)
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def write(folder: Path, content: Mapping[str, Any], config: ImageModelConfig | None = SMALL) -> Path:
    """vqgan.ckpt and vqgan.yaml; the path of the first."""
    torch.save(dict(content), folder / "vqgan.ckpt")
    if config is not None:
        (folder / "vqgan.yaml").write_text(yaml.safe_dump(settings(config)))
    return folder / "vqgan.ckpt"


def frames(pixels: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, pixels, pixels, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_imported_bitwise(dtype: torch.dtype, tmp_path: Path) -> None:
    given = weights(dtype=dtype)
    source = write(tmp_path, {"state_dict": given, "epoch": 3})
    assert main(["convert", "import", f"source={source}", f"out={tmp_path}/image.safetensors"]) == 0
    found = load_file(tmp_path / "image.safetensors")
    assert found.keys() == {name for name in given if not name.startswith("loss.")}
    assert all(torch.equal(found[name], given[name]) for name in found)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert ImageTokenizer.load(tmp_path / "image.safetensors").config == SMALL


def test_codes_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    given = weights()
    import_image_tokenizer(write(tmp_path, {"state_dict": given}), tmp_path / "image.safetensors")
    ours = ImageTokenizer.load(tmp_path / "image.safetensors")
    theirs: Any = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            resolution=32,
            num_embeddings=64,
            embed_dim=8,
            latent_channels=16,
            base_channels=32,
            channel_multiplier=[1, 2, 2],
            num_res_blocks=2,
            attn_resolutions=[16],
        )
    ).eval()
    encoder = {name: t for name, t in given.items() if not name.startswith(("loss.", "decoder."))}
    theirs.load_state_dict(encoder, strict=True)
    pixels = torch.from_numpy(frames()).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = theirs.encode(pixels).image_tokens.reshape(3, 8, 8)
    found = ours.encode(frames())
    assert np.array_equal(found, expected.numpy())
    assert len(np.unique(found)) > 10, "different images have different codes"


def test_the_decoder_is_the_published_one(tmp_path: Path) -> None:
    given = weights()
    tokenizer, _ = import_image_tokenizer(
        write(tmp_path, {"state_dict": given}), tmp_path / "image.safetensors"
    )
    codes = torch.randint(0, 64, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    expected = published_decoder(given, codes, SMALL)
    model = ImageModel(SMALL)
    model.load_state_dict(load_file(tmp_path / "image.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(model.decode(codes), expected, atol=1e-5, rtol=1e-5)
    shown = ((expected + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(tokenizer.decode(codes.numpy()).astype(float) - shown).max() <= 1, "but for rounding"


def test_the_same_network_encodes_frames_of_another_side(tmp_path: Path) -> None:
    config = replace(SMALL, attention_resolutions=())
    source = write(tmp_path, {"state_dict": weights(config)}, config)
    words = [f"source={source}", f"out={tmp_path}/64.safetensors", "pixels=64"]
    assert main(["convert", "import", *words]) == 0
    large, _ = import_image_tokenizer(source, tmp_path / "32.safetensors")
    assert ImageTokenizer.load(tmp_path / "64.safetensors").encode(frames(64)).shape == (3, 16, 16)
    assert large.encode(frames(32)).shape == (3, 8, 8)
    with pytest.raises(InputError, match="pixels=33 is not a multiple"):
        import_image_tokenizer(source, tmp_path / "33.safetensors", 33)
    write(tmp_path, {"state_dict": weights()})
    with pytest.raises(InputError, match=r"attends at the sides \[16\]"):
        import_image_tokenizer(source, tmp_path / "64a.safetensors", 64)


def test_without_vqgan_yaml_the_sizes_are_chameleons(tmp_path: Path) -> None:
    source = write(tmp_path, {"state_dict": weights()}, config=None)
    with pytest.raises(InputError, match=r"quantize\.embedding\.weight is \[64, 8\], expected \[8192, 256\]"):
        _wrong_shapes(source, tmp_path / "image.safetensors")


def _wrong_shapes(source: Path, out: Path) -> None:
    """Only the names that both have, so that the shapes are first in the list."""
    with torch.device("meta"):
        expected = ImageModel(ImageModelConfig()).state_dict()
    found = torch.load(source)["state_dict"]
    mixed = {name: torch.empty(1).expand(tensor.shape) for name, tensor in expected.items()}
    torch.save(mixed | {"quantize.embedding.weight": found["quantize.embedding.weight"]}, source)
    import_image_tokenizer(source, out)


def test_an_export_contains_the_encoder(tmp_path: Path) -> None:
    """Nothing is missing, and transformers encodes images to the same ids."""
    from transformers import ChameleonForConditionalGeneration

    from tests.support import hugging_face

    import_image_tokenizer(write(tmp_path, {"state_dict": weights()}), tmp_path / "image.safetensors")
    hugging_face.save(tmp_path / "theirs")
    assert main(["convert", "import", f"source={tmp_path}/theirs", f"out={tmp_path}/ours"]) == 0
    words = [f"checkpoint={tmp_path}/ours", f"out={tmp_path}/back"]
    assert main(["convert", "export", *words, f"image_tokenizer={tmp_path}/image.safetensors"]) == 0
    loaded: Any = ChameleonForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    model, info = loaded
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.from_numpy(frames()).permute(0, 3, 1, 2).float() / 127.5 - 1
    ours = ImageTokenizer.load(tmp_path / "image.safetensors").encode(frames()).reshape(3, -1)
    assert np.array_equal(model.get_image_tokens(pixels).numpy(), ours + 4)


def test_an_encoder_unknown_to_transformers_is_refused(tmp_path: Path) -> None:
    from tests.support import hugging_face

    config = replace(SMALL, norm_groups=16)
    ImageTokenizer(ImageModel(config)).save(tmp_path / "image.safetensors")
    hugging_face.save(tmp_path / "theirs")
    assert main(["convert", "import", f"source={tmp_path}/theirs", f"out={tmp_path}/ours"]) == 0
    words = [f"checkpoint={tmp_path}/ours", f"out={tmp_path}/back"]
    assert main(["convert", "export", *words, f"image_tokenizer={tmp_path}/image.safetensors"]) == 2
    assert not (tmp_path / "back").exists()


class Callback:
    """An object as training frameworks store it in their checkpoints."""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"state_dict": weights(), "callbacks": Callback()}, r"torch\.save\(\{'state_dict'"),
        ({"state_dict": [1, 2]}, "expected a state_dict of names and tensors"),
        ({"state_dict": {"a": "b"}}, "expected a state_dict of names and tensors"),
        ({"state_dict": {}}, "differences: encoder.conv_in.weight is missing"),
        ({"state_dict": weights() | {"new": torch.ones(1)}}, "1 differences: new is not in the network"),
        (
            {"state_dict": weights() | {"encoder.conv_in.bias": torch.ones(31)}},
            r"encoder.conv_in.bias is \[31\], expected \[32\]",
        ),
        (
            {"state_dict": weights() | {"encoder.conv_in.bias": torch.ones(32).half()}},
            r"encoder.conv_in.bias is torch.float16, others are torch.float32",
        ),
        (
            {"state_dict": weights() | {"encoder.conv_in.bias": torch.full((32,), torch.nan)}},
            r"encoder.conv_in.bias holds infinite values or NaN",
        ),
    ],
    ids=["objects", "list", "text", "empty", "extra", "shape", "mixed", "nan"],
)
def test_other_files_are_refused(content: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected):
        import_image_tokenizer(write(tmp_path, content), tmp_path / "image.safetensors")
    assert not (tmp_path / "image.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x02."], ids=["empty", "text", "torn"])
def test_truncated_files_are_refused(content: bytes, tmp_path: Path) -> None:
    source = write(tmp_path, {})
    source.write_bytes(content)
    with pytest.raises(InputError, match=r"vqgan\.ckpt: "):
        import_image_tokenizer(source, tmp_path / "image.safetensors")
    whole = write(tmp_path, {"state_dict": weights()}).read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"vqgan\.ckpt: "):
        import_image_tokenizer(source, tmp_path / "image.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("double_z", True, "double_z=True, expected False"),
        ("in_channels", 1, "in_channels=1, expected 3"),
        ("ch", "128", "no settings of a VQ-GAN"),
        ("ch_mult", 3, "no settings of a VQ-GAN"),
        ("resolution", 33, "no settings of a VQ-GAN"),
        ("num_res_blocks", 10**9, "no settings of a VQ-GAN"),
    ],
)
def test_other_settings_are_refused(key: str, value: Any, expected: str, tmp_path: Path) -> None:
    source = write(tmp_path, {"state_dict": weights()})
    changed = settings(SMALL)
    changed["model"]["params"]["ddconfig"][key] = value
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(InputError, match=expected):
        import_image_tokenizer(source, tmp_path / "image.safetensors")
    (tmp_path / "vqgan.yaml").write_text("- a list")
    with pytest.raises(InputError, match="no settings of a VQ-GAN"):
        import_image_tokenizer(source, tmp_path / "image.safetensors")


def test_an_existing_file_at_out_is_not_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path, {"state_dict": weights()})
    out = tmp_path / "image.safetensors"
    out.write_text("precious")
    with pytest.raises(InputError, match="expected the name of a new file"):
        import_image_tokenizer(source, out)
    assert out.read_text() == "precious"
