"""Converts between the `config.json` of Chameleon's classes and our settings of the same network.

Parameter names are the same on both sides; names that only theirs has (`model.vqmodel.*`, the image encoder)
belong to the image tokenizer here. Two classes store this network:

- `transformers`: Hugging Face's own. q/k norms are [heads, head size]; there is no action head.
- `published`: that of Lumina-mGPT, WorldVLA and RynnVLA-002. q/k norms are [model_parallel_size, head size],
  of which each row serves as many heads, one after the other; RynnVLA-002 has `action_head.*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.contracts import MAX_ACTION_DIM
from data.errors import InputError
from data.tokens.image_model import ImageModelConfig
from data.tokens.vocabulary import ACTION_DIM, END_OF_TURN, IMAGE_CODE_COUNT, IMAGE_CODE_START
from pretrain.model.action_head import PREFIX as ACTION_HEAD_PREFIX
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.model.transformer import check_divides

VQ_PREFIX = "model.vqmodel."
ROTARY_SUFFIX = "rotary_emb.inv_freq"  # old files store this table, which follows from rope_theta
VQ_GROUPS = 32
# [1, time_horizon * action_dim * hidden_size]
ACTION_QUERIES = f"{ACTION_HEAD_PREFIX}action_token_embeddings.weight"
HEAD_NORM_EPS = 1e-5

_SIZES = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "hidden_size",
    "ffn_size": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "key_value_heads": "num_key_value_heads",
    "max_positions": "max_position_embeddings",
}
_MAX_SIZES, _MAX_SIZE = {"layers": 1000}, 1 << 20
_MAX_HORIZON = 1000
# ChameleonConfig's defaults: a config.json may leave out what equals them.
_DEFAULTS = {
    "vocab_size": 65_536,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "swin_norm": False,
}
# With other values it is not Chameleon's network.
_FIXED = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "tie_word_embeddings": (False, None),
    "rope_scaling": (None,),
}
# The first ids of Chameleon's text tokenizer; our samples have no </s> and end a turn by <reserved08706>.
_BOS, _PAD, _EOS = 0, 1, 2
_PUBLISHED = "ChameleonXLLMXForConditionalGeneration_ck"
_PUBLISHED_WITH_HEAD = f"{_PUBLISHED}_action_head"
_IMAGE_PLACEHOLDER = 8_711  # <reserved08707>, which transformers shows as <image>


def model_config(values: Mapping[str, Any], where: Path) -> ModelConfig:
    """Convert a `config.json` to our settings of the network.

    Args:
        values: Its content.
        where: The file, for errors.

    Raises:
        InputError: A size that is no positive integer, or another network than ours.
    """
    wrong = [
        f"{key}={values[key]!r}, expected {allowed[0]!r}"
        for key, allowed in _FIXED.items()
        if values.get(key, allowed[0]) not in allowed
    ]
    kind = values.get("model_type", "chameleon")
    if not isinstance(kind, str) or "chameleon" not in kind:  # chameleon_xllmx is one too
        wrong.append(f"model_type={kind!r}, expected 'chameleon'")
    settings = _DEFAULTS | {key: value for key, value in values.items() if value is not None}
    if "num_key_value_heads" in values:  # null: as many as there are heads
        settings["num_key_value_heads"] = values["num_key_value_heads"] or settings["num_attention_heads"]
    sizes = {ours: settings[theirs] for ours, theirs in _SIZES.items()}
    wrong += [
        f"{_SIZES[ours]}={value!r}, expected an integer from 1 to {_MAX_SIZES.get(ours, _MAX_SIZE)}"
        for ours, value in sizes.items()
        if type(value) is not int or not 1 <= value <= _MAX_SIZES.get(ours, _MAX_SIZE)
    ]
    theta, eps, swin = _theta(settings, wrong), settings["rms_norm_eps"], settings["swin_norm"]
    if not isinstance(swin, bool):
        wrong.append(f"swin_norm={swin!r}, expected true or false")
    if eps != HEAD_NORM_EPS:
        wrong.append(f"rms_norm_eps={eps!r}, expected {HEAD_NORM_EPS} (Chameleon's q/k norm has no other)")
    if not wrong and settings.get("head_dim") not in (None, sizes["hidden_size"] // sizes["heads"]):
        wrong.append(f"head_dim={settings['head_dim']!r}, expected hidden_size / num_attention_heads")
    if wrong:
        raise InputError(f"{where}: not a Chameleon network of ours: {'; '.join(wrong)}")
    if sizes["key_value_heads"] == sizes["heads"]:
        sizes["key_value_heads"] = None
    config = ModelConfig(**sizes, swin_norm=swin, rope_theta=theta, norm_eps=eps)
    check_divides(config, 1)
    return config


def action_head_config(
    values: Mapping[str, Any], queries: tuple[int, ...] | None, hidden_size: int, where: Path
) -> ActionHeadConfig | None:
    """Settings of the continuous action head of published weights; None: they have none.

    Args:
        values: Content of `config.json`, of which old files lack `action_dim` and `time_horizon`.
        queries: Shape of `ACTION_QUERIES`; None: there is no such tensor.
        hidden_size: Of the network.
        where: The file, for errors.

    Raises:
        InputError: Actions of no number or too many, or another number of actions than the tensor holds.
    """
    if queries is None:
        return None
    width, horizon = values.get("action_dim", ACTION_DIM), values.get("time_horizon")
    if type(width) is not int or not 1 <= width <= MAX_ACTION_DIM:
        raise InputError(
            f"{where}: action_dim={width!r}, expected 1 to {MAX_ACTION_DIM}; take settings and weights of "
            "one model"
        )
    stored, remainder = divmod(queries[-1] if queries else 0, width * hidden_size)
    stored = 0 if remainder else stored
    horizon = stored if horizon is None else horizon
    if type(horizon) is not int or not 1 <= horizon <= _MAX_HORIZON or (stored and horizon != stored):
        raise InputError(
            f"{where}: time_horizon={horizon!r}, expected {stored or f'1 to {_MAX_HORIZON}'}: "
            f"{ACTION_QUERIES} {list(queries)} holds time_horizon x {width} x hidden_size={hidden_size} "
            "values; take settings and weights of one model"
        )
    return ActionHeadConfig(time_horizon=horizon, action_dim=width)


def norm_heads(config: ModelConfig, name: str) -> int | None:
    """Number of heads that a q/k norm is for; None for all other tensors."""
    if name.endswith(("q_norm.weight", "q_norm.bias")):
        return config.heads
    return config.shared_heads if name.endswith(("k_norm.weight", "k_norm.bias")) else None


def published_config(
    config: ModelConfig, dtype: str, image: ImageModelConfig | None, rows: int
) -> dict[str, Any]:
    """Make the content of the `config.json` by which the published class builds the same network.

    Args:
        config: Of the network.
        dtype: Of most weights.
        image: As `hugging_face_config`.
        rows: Of each q/k norm.
    """
    architecture = _PUBLISHED if config.action_head is None else _PUBLISHED_WITH_HEAD
    # That class predicts image codes only with `mask_image_logits` off.
    own = {"model_parallel_size": rows, "mask_image_logits": False}
    return hugging_face_config(config, dtype, image, architecture) | own


def hugging_face_config(
    config: ModelConfig, dtype: str, image: ImageModelConfig | None, architecture: str
) -> dict[str, Any]:
    """Make the content of the `config.json` by which transformers builds the same network.

    Args:
        config: Of the network.
        dtype: Of most weights, for example `bfloat16`.
        image: Of the image encoder that is exported too; None: Chameleon's sizes.
        architecture: Class in transformers.
    """
    sizes = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    values: dict[str, Any] = {
        "model_type": "chameleon",
        "architectures": [architecture],
        **sizes,
        "num_key_value_heads": config.shared_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "swin_norm": config.swin_norm,
        "tie_word_embeddings": False,
        "bos_token_id": _BOS,
        "pad_token_id": _PAD,
        "eos_token_id": _EOS,
        "torch_dtype": dtype,
        "vocabulary_map": vocabulary_map(config.vocabulary_size, image.codebook_size if image else 0),
    }
    if (head := config.action_head) is not None:
        values |= {"action_dim": head.action_dim, "time_horizon": head.time_horizon}
    if image is not None:
        values["vq_config"] = {
            "resolution": image.pixels,
            "num_embeddings": image.codebook_size,
            "embed_dim": image.embedding_size,
            "latent_channels": image.latent_channels,
            "base_channels": image.base_channels,
            "channel_multiplier": list(image.channel_multiplier),
            "num_res_blocks": image.residual_blocks,
            "attn_resolutions": list(image.attention_resolutions),
            "double_latent": False,
            "in_channels": 3,
            "attn_type": "vanilla",
        }
    return values


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """Make the content of `generation_config.json`: an answer ends with its end-of-turn token."""
    ends = [_EOS, END_OF_TURN] if config.vocabulary_size > END_OF_TURN else [_EOS]
    return {"bos_token_id": _BOS, "pad_token_id": _PAD, "eos_token_id": ends}


def vocabulary_map(size: int, codes: int) -> dict[str, int]:
    """Names of the image placeholder and of image codes in transformers, with their ids below `size`.

    Args:
        size: Of the vocabulary.
        codes: Number of image codes that are named. transformers needs the names to encode images itself, and
            never predicts a code that has one; so there are none without an image encoder.
    """
    names = {code_name(code): IMAGE_CODE_START + code for code in range(codes)}
    names["<image>"] = _IMAGE_PLACEHOLDER
    return {name: number for name, number in names.items() if number < size}


def code_name(code: int) -> str:
    """Chameleon's name of an image code, its digits as letters: 1023 -> `IMGIMGBACDZ`."""
    return f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z"


def _theta(values: Mapping[str, Any], wrong: list[str]) -> float:
    """Read `rope_theta`, in newer files from `rope_parameters`; any but plain RoPE is added to `wrong`."""
    rope = values.get("rope_parameters", {})
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        wrong.append(f"rope_parameters={rope!r}, expected the rope_type 'default'")
        return 0.0
    theta = rope.get("rope_theta", values.get("rope_theta", 10_000.0))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1.0 < theta < float("inf"):
        wrong.append(f"rope_theta={theta!r}, expected a number above 1")
        return 0.0
    return float(theta)


def other_codes(values: Mapping[str, Any]) -> int:
    """Count image codes that have another id in a `config.json` than `IMAGE_CODE_START` plus the code."""
    names = values.get("vocabulary_map")
    if not isinstance(names, dict):
        return 0
    ours = vocabulary_map(1 << 16, IMAGE_CODE_COUNT)
    return sum(name.startswith("IMGIMG") and ours.get(name) != number for name, number in names.items())
