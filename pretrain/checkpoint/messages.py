"""Messages between the ranks of a save or load: JSON and bytes in tensors, so that nothing is unpickled.

Every function is a collective of its group: all of the group's ranks call it. The waiting and the copying
happen without the interpreter's lock.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 8  # of the messages that rank 0 gathers


def broadcast_json(value: object, group: Any) -> Any:
    """Rank 0's JSON value, on every rank."""
    return json.loads(broadcast_bytes(json.dumps(value).encode(), group))


def broadcast_bytes(content: bytes, group: Any) -> bytes:
    """Rank 0's bytes, on every rank."""
    size = torch.tensor(len(content))
    dist.broadcast(size, 0, group=group)
    message = torch.empty(int(size), dtype=torch.uint8)
    if dist.get_rank() == 0:
        _fill(message, content)
    dist.broadcast(message, 0, group=group)
    return message.numpy().tobytes()


def gather_bytes(content: bytes, group: Any) -> list[NDArray[np.uint8]]:
    """Every rank's bytes, in the order of the ranks, on rank 0; an empty list on the others.

    Each begins at a multiple of eight bytes of memory, so that it can be viewed as numbers.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    size = torch.tensor([len(content)])
    sizes = list(torch.empty(ranks, 1, dtype=torch.int64)) if rank == 0 else None
    dist.gather(size, sizes, 0, group=group)
    longest = torch.zeros(1, dtype=torch.int64) if sizes is None else torch.cat(sizes).max()[None]
    dist.broadcast(longest, 0, group=group)
    message = _padded(content, -(-int(longest) // _ALIGNMENT) * _ALIGNMENT)
    messages = list(torch.empty(ranks, len(message), dtype=torch.uint8)) if rank == 0 else None
    dist.gather(message, messages, 0, group=group)
    if sizes is None or messages is None:
        return []
    return [one.numpy()[:length] for one, length in zip(messages, torch.cat(sizes).tolist(), strict=True)]


def all_gather_json(value: object, group: Any) -> list[Any]:
    """Every rank's JSON value, in the order of the ranks, on every rank."""
    content, ranks = json.dumps(value).encode(), dist.get_world_size()
    sizes = list(torch.empty(ranks, 1, dtype=torch.int64))
    dist.all_gather(sizes, torch.tensor([len(content)]), group=group)
    lengths = torch.cat(sizes).tolist()
    messages = list(torch.empty(ranks, max(lengths), dtype=torch.uint8))
    dist.all_gather(messages, _padded(content, max(lengths)), group=group)
    return [json.loads(m[:n].numpy().tobytes()) for m, n in zip(messages, lengths, strict=True)]


def _padded(content: bytes, size: int) -> Tensor:
    message = torch.zeros(size, dtype=torch.uint8)
    _fill(message[: len(content)], content)
    return message


def _fill(message: Tensor, content: bytes) -> None:
    message.numpy()[:] = np.frombuffer(content, np.uint8)
