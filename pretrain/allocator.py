"""Torch's allocator of GPU memory: read from the environment when a process first allocates there."""

from __future__ import annotations

from collections.abc import MutableMapping

from pretrain.config import Allocator

# torch 2.11 and 2.13 read the first that is set; the second is the name of earlier versions.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def configure_allocator(allocator: Allocator, environment: MutableMapping[str, str]) -> None:
    """Set the allocator of this process, unless its environment sets one already.

    Called before CUDA is used; that torch has been imported does not matter.

    Args:
        allocator: `trainer.allocator`.
        environment: Of the process (`os.environ`), changed in place.
    """
    if allocator == "default" or any(environment.get(name) for name in VARIABLES):
        return
    environment[VARIABLES[0]] = f"{allocator}:True"
