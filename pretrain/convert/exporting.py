"""A checkpoint as a folder that transformers loads: ChameleonForConditionalGeneration."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import InputError
from data.files import write_whole
from data.storage.store import Store
from data.tokens.image import ImageTokenizer
from data.tokens.image_model import ImageModelConfig
from data.tokens.vocabulary import IMAGE_CODE_COUNT
from pretrain.checkpoint.chunks import Chunk
from pretrain.checkpoint.dcp_storage import chunk_name
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import MASTER, Manifest, StoredTensor
from pretrain.checkpoint.policy_files import policy_of_export
from pretrain.checkpoint.tensor_blocks import LazyTensor, tensor_blocks
from pretrain.checkpoint.verification import find_damage
from pretrain.checkpoint_metadata import settings_section
from pretrain.convert.chameleon import (
    HEAD_NORM_EPS,
    VQ_GROUPS,
    VQ_PREFIX,
    generation_config,
    hugging_face_config,
)
from pretrain.convert.importing import Progress, check_unused, output_folder
from pretrain.convert.source import CONFIG, INDEX, SINGLE, check_shapes, listed
from pretrain.convert.tensor_files import TensorFile, split_into_files, write_tensors
from pretrain.model.config import ModelConfig
from pretrain.policy_settings import POLICY_FILE, PolicySettings

GENERATION_CONFIG = "generation_config.json"
ARCHITECTURE = "ChameleonForConditionalGeneration"
_TRAINED_DTYPE = "bfloat16"
# What transformers' ChameleonVQVAE holds of the image tokenizer; it has no decoder.
_VQ_PARTS = ("encoder.", "quantize.", "quant_conv.", "post_quant_conv.")


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was exported.

    Attributes:
        tensors: Their number.
        bytes: Their length.
        files: Number of weight files.
        dtypes: Number of tensors of each dtype.
        image_tensors: Number of tensors of the image encoder among them.
        policy: What using the weights takes, as written to `policy.json`; None: there is no such file.
        note: What of it could not be verified, or why there is none; empty: nothing to say.
    """

    tensors: int
    bytes: int
    files: int
    dtypes: dict[str, int]
    image_tensors: int
    policy: PolicySettings | None
    note: str


def export_weights(
    checkpoint: Path,
    out: Path,
    dtype: str | None,
    image_tokenizer: Path | None,
    file_bytes: int,
    progress: Progress,
) -> ExportSummary:
    """Write the weights of a checkpoint for transformers, one tensor in memory at a time.

    Args:
        checkpoint: Folder of a training's checkpoint, of any layout, or of imported weights.
        out: New folder, or an empty one; it appears in one rename, complete.
        dtype: One of `manifest.DTYPES`; None: imported weights keep theirs, a training's become bfloat16.
        image_tokenizer: File of an image tokenizer with Chameleon's network, whose encoder is exported too.
        file_bytes: Largest weight file to write.
        progress: Called with the bytes that are written and those of all tensors.

    Raises:
        InputError: No checkpoint or a damaged one, a network or an image tokenizer that transformers does
            not have, or `out` cannot be written.
    """
    check_unused(out)
    store = open_checkpoint(checkpoint)
    manifest = Manifest.read(store)
    config = stored_model(checkpoint, manifest)
    check_shapes(checkpoint, config, {name: tensor.shape for name, tensor in manifest.weights.items()})
    policy, note = policy_of_export(checkpoint, manifest)
    image, encoder = None, []
    if image_tokenizer is not None:
        image, encoder = _encoder(image_tokenizer, dtype, policy)
    if damage := find_damage(store, manifest.files):  # last: it reads all of them
        raise InputError(f"{checkpoint}: damaged: {listed(damage)}; take another checkpoint")
    weights = _network_tensors(checkpoint, store, manifest, dtype)
    tensors = [*weights, *encoder]
    dtypes = Counter(tensor.dtype for tensor in weights)
    values = hugging_face_config(config, dtypes.most_common(1)[0][0], image, ARCHITECTURE)
    size = sum(tensor.bytes for tensor in tensors)
    with output_folder(out, size) as temporary:
        files = _write_files(temporary, split_into_files(tensors, file_bytes), size, progress)
        _write_json(temporary / CONFIG, values)
        _write_json(temporary / GENERATION_CONFIG, generation_config(config))
        if policy is not None:
            _write_json(temporary / POLICY_FILE, policy.to_json())
    return ExportSummary(len(tensors), size, files, dict(dtypes), len(encoder), policy, note)


def stored_model(checkpoint: Path, manifest: Manifest) -> ModelConfig:
    """Read the settings of the network from a checkpoint's metadata.

    Raises:
        InputError: There are none, or they are of a network that transformers does not have.
    """
    values = settings_section(manifest.metadata, "model")
    if not values:
        raise InputError(
            f"{checkpoint}: its manifest holds no settings of the model; take another checkpoint"
        )
    known = {field.name: values[field.name] for field in fields(ModelConfig) if field.name in values}
    config = ModelConfig(**known)
    if config.norm_eps != HEAD_NORM_EPS:
        raise InputError(
            f"{checkpoint}: was trained with model.norm_eps={config.norm_eps}; transformers' Chameleon has "
            f"{HEAD_NORM_EPS} in its q/k norm and cannot compute the same"
        )
    return config


def _network_tensors(
    checkpoint: Path, store: Store, manifest: Manifest, dtype: str | None
) -> list[LazyTensor]:
    """The network's tensors, each assembled from its chunks when it is written."""
    table = manifest.chunk_table(store.url, manifest.read_chunk_table(store))
    chunks = {name: manifest.chunks(table, name) for name in manifest.weights}
    writers = sorted({chunk.writer for of_tensor in chunks.values() for chunk in of_tensor})
    files = {writer: TensorFile(checkpoint / manifest.file_of(writer, MASTER)) for writer in writers}
    tensors: list[LazyTensor] = []
    for name, stored in sorted(manifest.weights.items()):
        _check_chunks(checkpoint, files, name, stored, chunks[name])
        target_dtype = dtype or (stored.dtype if manifest.only_weights else _TRAINED_DTYPE)
        blocks = partial(_assembled, files, name, stored, chunks[name], target_dtype)
        tensors.append(LazyTensor(name, target_dtype, stored.shape, blocks))
    return tensors


def _check_chunks(
    checkpoint: Path,
    files: Mapping[int, TensorFile],
    name: str,
    stored: StoredTensor,
    chunks: Sequence[Chunk],
) -> None:
    """Compare a tensor's chunks with its files, so that nothing but stored values is exported.

    Raises:
        InputError: A chunk is missing or has another shape or dtype.
    """
    for chunk in chunks:
        file = files[chunk.writer]
        entry = file.entries.get(chunk_name(f"{MASTER}/{name}", chunk.box.offset))
        if entry is None or (entry.shape, entry.dtype) != (chunk.box.shape, stored.dtype):
            raise InputError(
                f"{checkpoint}: {file.path.name} does not hold {name} as its manifest says; take another "
                "checkpoint"
            )


def _assembled(
    files: Mapping[int, TensorFile], name: str, stored: StoredTensor, chunks: Sequence[Chunk], dtype: str
) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor, assembled from its chunks; of one chunk of that dtype, copied from its file."""
    if len(chunks) == 1 and stored.dtype == dtype:
        (chunk,) = chunks
        return files[chunk.writer].blocks(chunk_name(f"{MASTER}/{name}", chunk.box.offset))
    whole = torch.empty(stored.shape, dtype=getattr(torch, dtype))
    for chunk in chunks:
        region = tuple(slice(o, o + n) for o, n in zip(chunk.box.offset, chunk.box.shape, strict=True))
        part = files[chunk.writer].tensor(chunk_name(f"{MASTER}/{name}", chunk.box.offset))
        whole[region] = part  # copying converts
        _check_range(name, part, whole[region])
    return tensor_blocks(whole)


def _check_range(name: str, values: Tensor, converted: Tensor) -> None:
    """Refuse weights that became infinite; float16 is the only dtype that may be too small for one."""
    if converted.dtype == torch.float16 and not torch.equal(converted.isfinite(), values.isfinite()):
        raise InputError(
            f"{name}: has values beyond {torch.finfo(torch.float16).max:.0f}; export with dtype=bfloat16"
        )


def _encoder(
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
            _check_range(name, tensor, values)
            blocks = partial(tensor_blocks, values)
            tensors.append(LazyTensor(f"{VQ_PREFIX}{name}", target_dtype, tuple(tensor.shape), blocks))
    return tokenizer.config, tensors


def _write_files(folder: Path, parts: list[list[LazyTensor]], size: int, progress: Progress) -> int:
    """Write the files and, for several, their index; return their number."""
    written = 0

    def count(length: int) -> None:
        nonlocal written
        written += length
        progress(written, size)

    file_of: dict[str, str] = {}
    for number, part in enumerate(parts):
        name = SINGLE if len(parts) == 1 else f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        write_tensors(folder / name, part, count)
        file_of |= {tensor.name: name for tensor in part}
    if len(parts) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": file_of})
    return len(parts)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
