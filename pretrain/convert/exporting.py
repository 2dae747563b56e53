"""A checkpoint of ours as a folder that transformers loads: ChameleonForConditionalGeneration."""

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
from data.storage.store import Store
from data.tokens.image import ImageTokenizer
from data.tokens.image_model import ImageModelConfig
from data.tokens.vocabulary import IMAGE_CODE_COUNT
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import MASTER, Manifest, StoredTensor, write_durably
from pretrain.checkpoint.pieces import Piece
from pretrain.checkpoint.storage import piece_key
from pretrain.checkpoint.verification import damaged
from pretrain.convert.chameleon import (
    HEAD_NORM_EPS,
    VQ_GROUPS,
    VQ_PREFIX,
    generation_config,
    hugging_face_config,
)
from pretrain.convert.importing import Progress, check_new, new_folder
from pretrain.convert.source import CONFIG, INDEX, SINGLE, check_shapes, listed
from pretrain.convert.tensor_files import Content, TensorFile, shards, tensor_blocks, write_tensors
from pretrain.model.config import ModelConfig

GENERATION_CONFIG = "generation_config.json"
ARCHITECTURE = "ChameleonForConditionalGeneration"
_TRAINED_DTYPE = "bfloat16"
# What transformers' ChameleonVQVAE holds of the image tokenizer; it has no decoder.
_VQ_PARTS = ("encoder.", "quantize.", "quant_conv.", "post_quant_conv.")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported.

    Attributes:
        tensors: Their number.
        bytes: Their length.
        files: Number of weight files.
        dtypes: Number of tensors of each dtype.
        image_tensors: Number of tensors of the image encoder among them.
    """

    tensors: int
    bytes: int
    files: int
    dtypes: dict[str, int]
    image_tensors: int


def export_weights(
    checkpoint: Path,
    out: Path,
    dtype: str | None,
    image_tokenizer: Path | None,
    shard_bytes: int,
    progress: Progress,
) -> Exported:
    """Write the weights of a checkpoint for transformers, one tensor in memory at a time.

    Args:
        checkpoint: Folder of a training's checkpoint, of any layout, or of imported weights.
        out: New folder, or an empty one; it appears in one rename, complete.
        dtype: One of `manifest.DTYPES`; None: imported weights keep theirs, a training's become bfloat16.
        image_tokenizer: File of an image tokenizer with Chameleon's network, whose encoder goes along.
        shard_bytes: Largest weight file to write.
        progress: Told the bytes that are written and all that there are.

    Raises:
        InputError: No checkpoint or a damaged one, a network or an image tokenizer that transformers does
            not have, or `out` cannot be written.
    """
    check_new(out)
    store = open_checkpoint(checkpoint)
    manifest = Manifest.read(store)
    config = stored_model(checkpoint, manifest)
    check_shapes(checkpoint, config, {name: tensor.shape for name, tensor in manifest.weights.items()})
    image, encoder = None, []
    if image_tokenizer is not None:
        image, encoder = _encoder(image_tokenizer, dtype)
    if found := damaged(store, manifest.files):  # last: it reads all of them
        raise InputError(f"{checkpoint}: damaged: {listed(found)}; take another checkpoint")
    contents = _contents(checkpoint, store, manifest, dtype)
    exported = [*contents, *encoder]
    dtypes = Counter(content.dtype for content in contents)
    values = hugging_face_config(config, dtypes.most_common(1)[0][0], image, ARCHITECTURE)
    size = sum(content.bytes for content in exported)
    with new_folder(out, size) as temporary:
        files = _write(temporary, shards(exported, shard_bytes), size, progress)
        _write_json(temporary / CONFIG, values)
        _write_json(temporary / GENERATION_CONFIG, generation_config(config))
    return Exported(len(exported), size, files, dict(dtypes), len(encoder))


def stored_model(checkpoint: Path, manifest: Manifest) -> ModelConfig:
    """Settings of the network that a checkpoint's metadata holds.

    Raises:
        InputError: There are none, or they are of a network that transformers does not have.
    """
    values = manifest.metadata.get("config", {}).get("model")
    if not isinstance(values, dict):
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


def _contents(checkpoint: Path, store: Store, manifest: Manifest, dtype: str | None) -> list[Content]:
    """The network's tensors, each made of its pieces when it is written."""
    table = manifest.table(store.url, manifest.read_pieces(store))
    pieces = {name: manifest.pieces(table, name) for name in manifest.weights}
    writers = sorted({piece.writer for found in pieces.values() for piece in found})
    files = {writer: TensorFile(checkpoint / manifest.file_of(writer, MASTER)) for writer in writers}
    found: list[Content] = []
    for name, tensor in sorted(manifest.weights.items()):
        _check_pieces(checkpoint, files, name, tensor, pieces[name])
        chosen = dtype or (tensor.dtype if manifest.only_weights else _TRAINED_DTYPE)
        blocks = partial(_assembled, files, name, tensor, pieces[name], chosen)
        found.append(Content(name, chosen, tensor.shape, blocks))
    return found


def _check_pieces(
    checkpoint: Path,
    files: Mapping[int, TensorFile],
    name: str,
    tensor: StoredTensor,
    pieces: Sequence[Piece],
) -> None:
    """Compare what the manifest says of a tensor with its files: nothing is exported that nobody wrote.

    Raises:
        InputError: A piece is not there or is another one.
    """
    for piece in pieces:
        file = files[piece.writer]
        entry = file.entries.get(piece_key(f"{MASTER}/{name}", piece.box.offset))
        if entry is None or (entry.shape, entry.dtype) != (piece.box.shape, tensor.dtype):
            raise InputError(
                f"{checkpoint}: {file.path.name} does not hold {name} as its manifest says; take another "
                "checkpoint"
            )


def _assembled(
    files: Mapping[int, TensorFile], name: str, tensor: StoredTensor, pieces: Sequence[Piece], dtype: str
) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor made of its pieces; copied from the file where it is one piece of that dtype."""
    if len(pieces) == 1 and tensor.dtype == dtype:
        (piece,) = pieces
        return files[piece.writer].blocks(piece_key(f"{MASTER}/{name}", piece.box.offset))
    whole = torch.empty(tensor.shape, dtype=getattr(torch, dtype))
    for piece in pieces:
        where = tuple(slice(o, o + n) for o, n in zip(piece.box.offset, piece.box.shape, strict=True))
        part = files[piece.writer].tensor(piece_key(f"{MASTER}/{name}", piece.box.offset))
        whole[where] = part  # copying converts
        _check_range(name, part, whole[where])
    return tensor_blocks(whole)


def _check_range(name: str, values: Tensor, converted: Tensor) -> None:
    """Refuse weights that became infinite; float16 is the only dtype that may be too small for one."""
    if converted.dtype == torch.float16 and not torch.equal(converted.isfinite(), values.isfinite()):
        raise InputError(
            f"{name}: has values beyond {torch.finfo(torch.float16).max:.0f}; export with dtype=bfloat16"
        )


def _encoder(path: Path, dtype: str | None) -> tuple[ImageModelConfig, list[Content]]:
    """Sizes and tensors of an image tokenizer's encoder, under their names in transformers.

    Raises:
        InputError: It cannot be read, or transformers has no such network.
    """
    tokenizer = ImageTokenizer.load(path)
    if tokenizer.config.norm_groups != VQ_GROUPS or tokenizer.codebook_size > IMAGE_CODE_COUNT:
        raise InputError(
            f"image_tokenizer={path}: {tokenizer.config.norm_groups} groups in its normalisation and "
            f"{tokenizer.codebook_size} codes; transformers' encoder has {VQ_GROUPS} groups and at most "
            f"{IMAGE_CODE_COUNT} codes: export without it"
        )
    found: list[Content] = []
    for name, tensor in tokenizer.tensors().items():
        if name.startswith(_VQ_PARTS):
            chosen = dtype or str(tensor.dtype).removeprefix("torch.")
            values = tensor.to(getattr(torch, chosen))
            _check_range(name, tensor, values)
            found.append(
                Content(f"{VQ_PREFIX}{name}", chosen, tuple(tensor.shape), partial(tensor_blocks, values))
            )
    return tokenizer.config, found


def _write(folder: Path, parts: list[list[Content]], size: int, progress: Progress) -> int:
    """Write the files and, of several, their index; their number."""
    written = 0

    def count(length: int) -> None:
        nonlocal written
        written += length
        progress(written, size)

    where: dict[str, str] = {}
    for number, part in enumerate(parts):
        name = SINGLE if len(parts) == 1 else f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        write_tensors(folder / name, part, count)
        where |= {content.name: name for content in part}
    if len(parts) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": where})
    return len(parts)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_durably(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
