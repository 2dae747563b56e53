"""Import of Chameleon's `vqgan.ckpt` as an image tokenizer, encoder and decoder.

The file is a torch pickle with a `state_dict`. Its tensors have the names of "Taming Transformers", which
`data.tokens.image_model` uses, too; `vqgan.yaml` beside it holds the sizes.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
import yaml
from torch import Tensor

from data.errors import InputError
from data.tokens.image import ImageTokenizer
from data.tokens.image_model import ImageModel, ImageModelConfig

LOSS_PREFIX = "loss."
SETTINGS_SUFFIX = ".yaml"
_MAX_LISTED = 5  # differences in a message
_MAX_SIZE = 1 << 16
# Raised by torch for a damaged file.
_DAMAGED = (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_SIZES = {
    "pixels": "resolution",
    "codebook_size": "n_embed",
    "embedding_size": "embed_dim",
    "latent_channels": "z_channels",
    "base_channels": "ch",
    "channel_multiplier": "ch_mult",
    "residual_blocks": "num_res_blocks",
    "attention_resolutions": "attn_resolutions",
}
# Allowed values, the first one is the default of a missing key; any other value makes another network.
_REQUIRED = {
    "double_z": (False,),
    "in_channels": (3,),
    "out_ch": (3,),
    "resamp_with_conv": (True,),
    "attn_type": ("vanilla",),
    "use_linear_attn": (False,),
    "tanh_out": (False,),
    "give_pre_end": (False,),
    "remap": (None,),
}


def import_image_tokenizer(source: Path, out: Path, pixels: int | None = None) -> tuple[ImageTokenizer, int]:
    """Convert a `vqgan.ckpt` to the image tokenizer `out`.

    Args:
        source: The file; only its tensors are read, no code in it runs.
        out: New safetensors file; the weights keep their dtype.
        pixels: Side of the frames (the network is convolutional, and Chameleon's works at 256 as well as
            512 pixels); None: the side in `vqgan.yaml`.

    Returns:
        The tokenizer, and the number of tensors left out (those of the training loss).

    Raises:
        InputError: No such file, tensors that are not those of the network (listed), or `out` exists.
    """
    if out.suffix != ".safetensors" or out.exists():
        raise InputError(f"out={out}: expected the name of a new file *.safetensors")
    config = _config(source.with_suffix(SETTINGS_SUFFIX))
    if pixels is not None:
        config = _resized(config, pixels)
    tensors = _read(source)
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(LOSS_PREFIX)}
    with torch.device("meta"):
        model = ImageModel(config)
    _check_tensors(
        source, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, weights
    )
    dtype = weights["encoder.conv_in.weight"].dtype
    if different := sorted(name for name, tensor in weights.items() if tensor.dtype != dtype):
        raise InputError(f"{source}: {different[0]} is {weights[different[0]].dtype}, others are {dtype}")
    if dtype not in _FLOATS:
        raise InputError(f"{source}: weights of {dtype}, expected floats of 16 or 32 bits")
    if broken := sorted(name for name, tensor in weights.items() if not tensor.isfinite().all()):
        raise InputError(f"{source}: {broken[0]} holds infinite values or NaN; download it again")
    model.load_state_dict(weights, assign=True)
    tokenizer = ImageTokenizer(model, dtype)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(out)
    except OSError as error:
        raise InputError(f"out={out}: cannot be written ({error})") from error
    return tokenizer, len(tensors) - len(weights)


def _read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of the file's `state_dict`."""
    try:
        mapped = zipfile.is_zipfile(path)  # files of torch before 1.6 cannot be mapped
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds other objects than tensors, which could run any program when read; where you "
            "trust it, save its tensors anew: python -c \"import torch; torch.save({'state_dict': "
            f"torch.load('{path}', weights_only=False, map_location='cpu')['state_dict']}}, 'vqgan.ckpt')\""
        ) from error
    except _DAMAGED as error:
        raise InputError(f"{path}: not a complete file of torch.save ({error}); download it again") from error
    mapping = cast(dict[str, Any], content if isinstance(content, dict) else {})
    state_dict: Any = mapping.get("state_dict", content)
    if not _is_state_dict(state_dict):
        raise InputError(f"{path}: expected a state_dict of names and tensors, as in Chameleon's vqgan.ckpt")
    return state_dict


def _is_state_dict(value: Any) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        for name, tensor in cast(dict[Any, Any], value).items()
    )


def _config(path: Path) -> ImageModelConfig:
    """Read the sizes from `vqgan.yaml`; Chameleon's sizes where there is no file."""
    if not path.is_file():
        return ImageModelConfig()
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        values = params["ddconfig"] | {key: params[key] for key in ("n_embed", "embed_dim")}
        values |= {"remap": params.get("remap")}
        known = {ours: values[theirs] for ours, theirs in _SIZES.items()}
        for key in ("channel_multiplier", "attention_resolutions"):
            known[key] = tuple(map(_integer, known[key]))
        known |= {key: _integer(value) for key, value in known.items() if not isinstance(value, tuple)}
        config = ImageModelConfig(**known)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: no settings of a VQ-GAN ({error!r}); expected Chameleon's vqgan.yaml, or no such file "
            "for Chameleon's sizes"
        ) from error
    wrong = [
        f"{key}={values[key]!r}, expected {allowed[0]!r}"
        for key, allowed in _REQUIRED.items()
        if values.get(key, allowed[0]) not in allowed
    ]
    if wrong:
        raise InputError(f"{path}: another network than Chameleon's: {'; '.join(wrong)}")
    return config


def _resized(config: ImageModelConfig, pixels: int) -> ImageModelConfig:
    """Settings of the same network for frames of another side."""
    if config.attention_resolutions:
        raise InputError(
            f"pixels={pixels}: this network attends at the sides {list(config.attention_resolutions)}, which "
            f"belong to frames of {config.pixels} pixels; leave pixels out"
        )
    try:
        return replace(config, pixels=pixels)
    except ValueError as error:
        raise InputError(f"pixels={pixels}: {error}") from error


def _integer(value: Any) -> int:
    if type(value) is not int or value > _MAX_SIZE:
        raise ValueError(f"{value!r} is not an integer of at most {_MAX_SIZE}")
    return value


def _check_tensors(
    source: Path, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse tensors whose names or shapes are not those of the network (InputError)."""
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is not in the network" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise InputError(
            f"{source}: its tensors are not those of the network, {len(wrong)} differences: "
            f"{'; '.join(wrong[:_MAX_LISTED])}{more}; put the vqgan.yaml that belongs to it beside it"
        )
