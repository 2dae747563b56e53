"""A checkpoint as a folder of published weights, for transformers' class or for that of WorldVLA."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.contracts import WeightsChoice
from data.errors import InputError
from data.files import write_whole
from data.storage.store import Store
from pretrain.checkpoint.chunks import Chunk, chunk_name, split_name
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import EMA, Manifest, StoredTensor
from pretrain.checkpoint.policy_files import policy_of_export
from pretrain.checkpoint.tensor_blocks import LazyTensor, tensor_blocks
from pretrain.checkpoint.verification import find_damage
from pretrain.checkpoint.weights import chosen_state, describe_state
from pretrain.checkpoint_metadata import settings_section
from pretrain.config import WeightsLayout
from pretrain.convert.chameleon import (
    HEAD_NORM_EPS,
    generation_config,
    hugging_face_config,
    published_config,
)
from pretrain.convert.embodiment import exported_policy
from pretrain.convert.image_encoder import encoder_tensors
from pretrain.convert.importing import Progress, check_unused, output_folder
from pretrain.convert.norm_rows import share_norm_rows
from pretrain.convert.source import ACTION_HEAD, CONFIG, INDEX, SINGLE, check_shapes, listed
from pretrain.convert.tensor_files import TensorFile, check_range, split_into_files, write_tensors
from pretrain.model.action_head import PREFIX as ACTION_HEAD_PREFIX
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.policy_settings import POLICY_FILE, PolicySettings

GENERATION_CONFIG = "generation_config.json"
ARCHITECTURE = "ChameleonForConditionalGeneration"
_TRAINED_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was exported.

    Attributes:
        tensors: Their number.
        bytes: Their length.
        files: Number of weight files.
        dtypes: Number of tensors of each dtype.
        image_tensors: Number of tensors of the image encoder among them.
        action_head: Settings of the action head; None: there is none.
        action_head_tensors: Number of tensors of the action head among them.
        norm_rows: Rows of each q/k norm in the published layout; None: one for each head.
        policy: What using the weights takes, as written to `policy.json`; None: there is no such file.
        note: What of it could not be verified, or why there is none; empty: nothing to say.
        weights: Which weights of the checkpoint these are: `trained`, or `averaged` with the decay.
    """

    tensors: int
    bytes: int
    files: int
    dtypes: dict[str, int]
    image_tensors: int
    action_head: ActionHeadConfig | None
    action_head_tensors: int
    norm_rows: int | None
    policy: PolicySettings | None
    note: str
    weights: str


def export_weights(
    checkpoint: Path,
    out: Path,
    dtype: str | None,
    image_tokenizer: Path | None,
    file_bytes: int,
    progress: Progress,
    layout: WeightsLayout = "transformers",
    embodiment: str | None = None,
    choice: WeightsChoice = "auto",
) -> ExportSummary:
    """Write the weights of a checkpoint, one tensor in memory at a time.

    Args:
        checkpoint: Folder of a training's checkpoint, of any layout, or of imported weights.
        out: New folder, or an empty one; it appears in one rename, complete.
        dtype: One of `manifest.DTYPES`; None: imported weights keep theirs, a training's become bfloat16.
        image_tokenizer: File of an image tokenizer with Chameleon's network, whose encoder is exported too.
        file_bytes: Largest weight file to write.
        progress: Called with the bytes that are written and those of all tensors.
        layout: Of which class (`pretrain.convert.chameleon`).
        embodiment: Name of the data set whose embodiment alone `policy.json` is of; None: all.
        choice: Which weights of the checkpoint are exported.

    Raises:
        InputError: No checkpoint or a damaged one, no such weights, a network or an image tokenizer that
            transformers does not have, q/k norms that the layout cannot hold, several embodiments for the
            published class, or `out` cannot be written.
    """
    check_unused(out)
    store = open_checkpoint(checkpoint)
    manifest = Manifest.read(store)
    state = chosen_state(checkpoint, manifest, choice)
    config = stored_model(checkpoint, manifest)
    check_shapes(checkpoint, config, {name: tensor.shape for name, tensor in manifest.weights.items()})
    policy, note = policy_of_export(checkpoint, manifest)
    policy = exported_policy(checkpoint, policy, config.action_head, layout, embodiment)
    image, encoder = None, []
    if image_tokenizer is not None:
        image, encoder = encoder_tensors(image_tokenizer, dtype, policy)
    if damage := find_damage(store, manifest.files_of(state)):  # last: it reads all of them
        raise InputError(f"{checkpoint}: damaged: {listed(damage)}; take another checkpoint")
    weights = _network_tensors(checkpoint, store, manifest, state, dtype)
    dtypes = Counter(tensor.dtype for tensor in weights)
    usual, rows = dtypes.most_common(1)[0][0], None
    if layout == "published":
        weights, rows = share_norm_rows(weights, config)
        values = published_config(config, usual, image, rows)
    else:
        values = hugging_face_config(config, usual, image, ARCHITECTURE)
    kind = describe_state(manifest, state)
    head = [tensor for tensor in weights if tensor.name.startswith(ACTION_HEAD_PREFIX)]
    size = sum(tensor.bytes for tensor in [*weights, *encoder])
    with output_folder(out, size) as temporary:
        apart = head if layout == "transformers" else []
        files = _write_files(temporary, [*weights, *encoder], apart, file_bytes, _Count(size, progress))
        _write_json(temporary / CONFIG, values)
        _write_json(temporary / GENERATION_CONFIG, generation_config(config))
        if policy is not None:
            averaged = {"weights": kind} if state == EMA else {}
            _write_json(temporary / POLICY_FILE, policy.to_json() | averaged)
    return ExportSummary(
        tensors=len(weights) + len(encoder),
        bytes=size,
        files=files,
        dtypes=dict(dtypes),
        image_tensors=len(encoder),
        action_head=config.action_head,
        action_head_tensors=len(head),
        norm_rows=rows,
        policy=policy,
        note=note,
        weights=kind,
    )


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
    if isinstance(head := known.get("action_head"), dict):
        kept = {field.name: head[field.name] for field in fields(ActionHeadConfig) if field.name in head}
        known["action_head"] = ActionHeadConfig(**kept)
    config = ModelConfig(**known)
    if config.norm_eps != HEAD_NORM_EPS:
        raise InputError(
            f"{checkpoint}: was trained with model.norm_eps={config.norm_eps}; transformers' Chameleon has "
            f"{HEAD_NORM_EPS} in its q/k norm and cannot compute the same"
        )
    return config


def _network_tensors(
    checkpoint: Path, store: Store, manifest: Manifest, state: str, dtype: str | None
) -> list[LazyTensor]:
    """The network's tensors, each assembled from its chunks when it is written."""
    table = manifest.chunk_table(store.url, manifest.read_chunk_table(store))
    chunks = {name: manifest.chunks(table, name) for name in manifest.weights}
    writers = sorted({chunk.writer for of_tensor in chunks.values() for chunk in of_tensor})
    files = {writer: TensorFile(checkpoint / manifest.file_of(writer, state)) for writer in writers}
    tensors: list[LazyTensor] = []
    for name, stored in sorted(manifest.weights.items()):
        tensor = f"{state}/{name}"
        _check_chunks(checkpoint, files, tensor, stored, chunks[name])
        target_dtype = dtype or (stored.dtype if manifest.only_weights else _TRAINED_DTYPE)
        blocks = partial(_assembled, files, tensor, stored, chunks[name], target_dtype)
        tensors.append(LazyTensor(name, target_dtype, stored.shape, blocks))
    return tensors


def _check_chunks(
    checkpoint: Path,
    files: Mapping[int, TensorFile],
    tensor: str,
    stored: StoredTensor,
    chunks: Sequence[Chunk],
) -> None:
    """Compare a tensor's chunks with its files, so that nothing but stored values is exported.

    Raises:
        InputError: A chunk is missing or has another shape or dtype.
    """
    for chunk in chunks:
        file = files[chunk.writer]
        entry = file.entries.get(chunk_name(tensor, chunk.box.offset))
        if entry is None or (entry.shape, entry.dtype) != (chunk.box.shape, stored.dtype):
            raise InputError(
                f"{checkpoint}: {file.path.name} does not hold {split_name(tensor)[1]} as its manifest "
                "says; take another checkpoint"
            )


def _assembled(
    files: Mapping[int, TensorFile], tensor: str, stored: StoredTensor, chunks: Sequence[Chunk], dtype: str
) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor, assembled from its chunks; of one chunk of that dtype, copied from its file."""
    if len(chunks) == 1 and stored.dtype == dtype:
        (chunk,) = chunks
        return files[chunk.writer].blocks(chunk_name(tensor, chunk.box.offset))
    whole = torch.empty(stored.shape, dtype=getattr(torch, dtype))
    for chunk in chunks:
        region = chunk.box.slices
        part = files[chunk.writer].tensor(chunk_name(tensor, chunk.box.offset))
        whole[region] = part  # copying converts
        check_range(split_name(tensor)[1], part, whole[region])
    return tensor_blocks(whole)


class _Count:
    """Adds up the bytes that are written.

    Args:
        size: Of everything.
        progress: Called with the sum and the size.
    """

    def __init__(self, size: int, progress: Progress) -> None:
        self._size, self._progress, self._written = size, progress, 0

    def __call__(self, length: int) -> None:
        self._written += length
        self._progress(self._written, self._size)


def _write_files(
    folder: Path, tensors: Sequence[LazyTensor], apart: Sequence[LazyTensor], file_bytes: int, count: _Count
) -> int:
    """Write the files and, for several, their index; return their number.

    Args:
        folder: For the files.
        tensors: All of them.
        apart: Those of the action head where they go to a file of their own: transformers, which has no such
            head, does not read it.
        file_bytes: Largest file of the others.
        count: Called with the bytes that are written.
    """
    names = {tensor.name for tensor in apart}
    parts = split_into_files([tensor for tensor in tensors if tensor.name not in names], file_bytes)
    file_of: dict[str, str] = {}
    for number, part in enumerate(parts):
        name = SINGLE if len(parts) == 1 else f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        write_tensors(folder / name, part, count)
        file_of |= {tensor.name: name for tensor in part}
    if len(parts) > 1:
        size = sum(tensor.bytes for part in parts for tensor in part)
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": file_of})
    if apart:
        write_tensors(folder / ACTION_HEAD, apart, count)
    return len(parts) + bool(apart)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
