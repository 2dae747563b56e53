"""The bare weights of a checkpoint in one process: no engine, no process groups, no DeepSpeed."""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from data.errors import InputError
from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.load import damage
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import MASTER, Manifest
from pretrain.checkpoint.storage import piece_key
from pretrain.checkpoint.tensor_stream import Take, read_whole
from pretrain.model.transformer import sharded_dimension

_THREADS = 4


def load_weights(
    where: str | Path, dtype: torch.dtype = torch.float32, tensor_rank: int = 0, tensor_size: int = 1
) -> dict[str, Tensor]:
    """The weights alone, by their global names: whole, or the part of one tensor-parallel rank.

    Every file with weights is read once, verified on the way, and nothing is held beside the result but
    some blocks of a file. The result does not depend on the layout that wrote the checkpoint.

    Args:
        where: The checkpoint's folder or URL.
        dtype: Of the result.
        tensor_rank: Which part of the parameters that tensor-parallel ranks share out.
        tensor_size: Number of those ranks; 1: whole weights.

    Raises:
        InputError: No committed checkpoint there, a damaged file (named), or a parameter that cannot be
            shared out over so many ranks.
    """
    store = open_checkpoint(where)
    manifest = Manifest.read(store)
    table = manifest.table(store.url, manifest.read_pieces(store))
    weights: dict[str, Tensor] = {}
    takes: dict[str, dict[str, list[Take]]] = defaultdict(lambda: defaultdict(list))
    for name, tensor in manifest.weights.items():
        part = _part(store.url, name, tensor.shape, tensor_rank, tensor_size)
        weights[name] = torch.empty(part.shape, dtype=dtype)
        for piece in manifest.pieces(table, name, [part]):
            key = piece_key(f"{MASTER}/{name}", piece.box.offset)
            take = _take(piece.box, part, weights[name])
            takes[manifest.file_of(piece.writer, MASTER)][key].append(take)

    def read(file: str) -> str | None:
        try:
            read_whole(store, file, manifest.files[file], takes[file])
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        wrong = [line for line in pool.map(read, sorted(takes)) if line is not None]
    if wrong:
        raise damage(store.url, wrong)
    return weights


def _part(where: str, name: str, shape: tuple[int, ...], rank: int, size: int) -> Box:
    """What a tensor-parallel rank holds of a parameter."""
    dimension = sharded_dimension(name)
    offset, sides = [0] * len(shape), list(shape)
    if size > 1 and dimension is not None:
        if shape[dimension] % size:
            raise InputError(
                f"{where}: {name} has {shape[dimension]} rows to share out, not a multiple of {size} ranks; "
                "choose another tensor-parallel size"
            )
        sides[dimension] //= size
        offset[dimension] = rank * sides[dimension]
    return Box(tuple(offset), tuple(sides))


def _take(stored: Box, part: Box, target: Tensor) -> Take:
    """What the stored box has of the wanted part, and where in it that belongs."""
    source: list[slice] = []
    there: list[slice] = []
    for first, length, start, size in zip(stored.offset, stored.shape, part.offset, part.shape, strict=True):
        low, high = max(first, start), min(first + length, start + size)
        source.append(slice(low - first, high - first))
        there.append(slice(low - start, high - start))
    return Take(stored.shape, tuple(source), target[tuple(there)])
