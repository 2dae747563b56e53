"""The bare weights of a checkpoint in one process: no engine, no process groups, no DeepSpeed."""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from data.contracts import WeightsChoice
from data.errors import InputError, StorageError
from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.chunks import chunk_name
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import EMA, MASTER, Manifest
from pretrain.checkpoint.ready import damage_error
from pretrain.checkpoint.tensor_stream import ReadRequest, read_verified
from pretrain.model.parameters import sharded_dimension

_THREADS = 4


def chosen_state(url: str | Path, manifest: Manifest, choice: WeightsChoice) -> str:
    """The state, `EMA` or `MASTER`, that a setting means in a checkpoint; `auto`: the average if any.

    Args:
        url: Of the checkpoint, for errors.
        manifest: Of the checkpoint.
        choice: The setting.

    Raises:
        InputError: The checkpoint has no average, which the setting asks for.
    """
    if choice == "trained" or (choice == "auto" and manifest.average is None):
        return MASTER
    if manifest.average is None:
        raise InputError(
            f"weights={choice}: {url} has no average of its weights, as it was trained without optim.ema; "
            "give weights=trained, or leave it out"
        )
    return EMA


def describe_state(manifest: Manifest, state: str) -> str:
    """A choice of `chosen_state` in words, as results name it: `trained`, or `averaged` with its decay."""
    if state == EMA and manifest.average is not None:
        return f"averaged (decay {manifest.average.decay:g})"
    return "trained"


def load_weights(
    url: str | Path,
    dtype: torch.dtype = torch.float32,
    tensor_rank: int = 0,
    tensor_size: int = 1,
    choice: WeightsChoice = "trained",
) -> dict[str, Tensor]:
    """Load the bare weights, by their global names: whole, or the partition of one tensor-parallel rank.

    Every file with weights is read once and verified on the way; beside the result only some blocks of a file
    are in memory. The result does not depend on the layout that wrote the checkpoint.

    Args:
        url: The checkpoint's folder or URL.
        dtype: Of the result.
        tensor_rank: Whose partition of the tensor-parallel parameters is loaded.
        tensor_size: Number of tensor-parallel ranks; 1: whole weights.
        choice: Which weights, as for `chosen_state`; files with others are not read.

    Raises:
        InputError: No committed checkpoint there, a damaged file (named), no such weights, or a parameter
            that cannot be divided among so many ranks.
    """
    store = open_checkpoint(url)
    manifest = Manifest.read(store)
    table = manifest.chunk_table(store.url, manifest.read_chunk_table(store))
    state = chosen_state(store.url, manifest, choice)
    weights: dict[str, Tensor] = {}
    requests: dict[str, dict[str, list[ReadRequest]]] = defaultdict(lambda: defaultdict(list))
    for name, tensor in manifest.weights.items():
        part = _partition(store.url, name, tensor.shape, tensor_rank, tensor_size)
        weights[name] = torch.empty(part.shape, dtype=dtype)
        for chunk in manifest.chunks(table, name, [part]):
            key = chunk_name(f"{state}/{name}", chunk.box.offset)
            request = _overlap(chunk.box, part, weights[name])
            requests[manifest.file_of(chunk.writer, state)][key].append(request)

    def read(file: str) -> str | None:
        try:
            read_verified(store, file, manifest.files[file], requests[file])
        except StorageError:
            raise
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        damage = [line for line in pool.map(read, sorted(requests)) if line is not None]
    if damage:
        raise damage_error(store.url, damage)
    return weights


def _partition(url: str, name: str, shape: tuple[int, ...], rank: int, size: int) -> Box:
    """The box of a parameter that a tensor-parallel rank holds."""
    dimension = sharded_dimension(name)
    offset, sides = [0] * len(shape), list(shape)
    if size > 1 and dimension is not None:
        if shape[dimension] % size:
            raise InputError(
                f"{url}: {name} has {shape[dimension]} rows to share out, not a multiple of {size} ranks; "
                "choose another tensor-parallel size"
            )
        sides[dimension] //= size
        offset[dimension] = rank * sides[dimension]
    return Box(tuple(offset), tuple(sides))


def _overlap(stored: Box, part: Box, target: Tensor) -> ReadRequest:
    """What a stored box has of `part`, whose memory is `target`."""
    source: list[slice] = []
    destination: list[slice] = []
    for first, length, start, size in zip(stored.offset, stored.shape, part.offset, part.shape, strict=True):
        low, high = max(first, start), min(first + length, start + size)
        source.append(slice(low - first, high - first))
        destination.append(slice(low - start, high - start))
    return ReadRequest(stored.shape, tuple(source), target[tuple(destination)])
