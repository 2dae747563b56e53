"""The encoder of an image tokenizer under its names in transformers, for an export."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from data.errors import InputError
from data.tokens.image import ImageTokenizer
from data.tokens.image_model import ImageModelConfig
from data.tokens.vocabulary import IMAGE_CODE_COUNT
from pretrain.checkpoint.tensor_blocks import LazyTensor, tensor_blocks
from pretrain.convert.chameleon import VQ_GROUPS, VQ_PREFIX
from pretrain.convert.tensor_files import check_range
from pretrain.policy_settings import PolicySettings

# What transformers' ChameleonVQVAE holds of the image tokenizer; it has no decoder.
_VQ_PARTS = ("encoder.", "quantize.", "quant_conv.", "post_quant_conv.")


def encoder_tensors(
    path: Path, dtype: str | None, policy: PolicySettings | None
) -> tuple[ImageModelConfig, list[LazyTensor]]:
    """Sizes and tensors of an image tokenizer's encoder, under their names in transformers.

    Raises:
        InputError: It cannot be read, is not the one that the weights were trained with, or transformers has
            no such network.
    """
    tokenizer = ImageTokenizer.load(path)
    if policy is not None and tokenizer.sha256 != policy.image_tokenizer_sha256:
        raise InputError(
            f"image_tokenizer={path}: has checksum {tokenizer.sha256[:12]}, the weights were trained with "
            f"{policy.image_tokenizer_sha256[:12]}; give that file, or leave it out"
        )
    if tokenizer.config.norm_groups != VQ_GROUPS or tokenizer.codebook_size > IMAGE_CODE_COUNT:
        raise InputError(
            f"image_tokenizer={path}: {tokenizer.config.norm_groups} groups in its normalisation and "
            f"{tokenizer.codebook_size} codes; transformers' encoder has {VQ_GROUPS} groups and at most "
            f"{IMAGE_CODE_COUNT} codes: export without it"
        )
    tensors: list[LazyTensor] = []
    for name, tensor in tokenizer.tensors().items():
        if name.startswith(_VQ_PARTS):
            target_dtype = dtype or str(tensor.dtype).removeprefix("torch.")
            values = tensor.to(getattr(torch, target_dtype))
            check_range(name, tensor, values)
            blocks = partial(tensor_blocks, values)
            tensors.append(LazyTensor(f"{VQ_PREFIX}{name}", target_dtype, tuple(tensor.shape), blocks))
    return tokenizer.config, tensors
