"""What a CUDA graph does, on a CPU: operations are recorded once and repeated on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# A capture fails on these: the host waits for their result.
WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")


class Tape(TorchDispatchMode):
    """Operations with their arguments and results, those that write in place included."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in WAITING, f"{func} makes the host wait"
        results = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, tree_leaves(results)))
        return results

    def __len__(self) -> int:
        return len(self._calls)

    def replay(self) -> None:
        """Repeat all operations: each result is written where it was when recorded."""
        for func, args, kwargs, recorded in self._calls:
            for old, new in zip(recorded, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapedGraphs:
    """A backend of `Graphs` for the CPU: a step that is captured here could be on a GPU.

    Attributes:
        warmed_up: Number of warm-ups.
        tapes: A tape for each capture.
        replays: Number of replays.
    """

    def __init__(self) -> None:
        self.warmed_up = 0
        self.tapes: list[Tape] = []
        self.replays = 0

    def warm_up(self, run: Callable[[], None]) -> None:
        """Runs it twice: what a step leaves behind must not add up."""
        self.warmed_up += 1
        run()
        run()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Records it; as on a GPU, only a replay counts: what the recording computed is spoilt."""
        assert self.warmed_up == len(self.tapes) + 1, "captured without a warm-up"
        tape = Tape()
        with tape:
            run()
        self.tapes.append(tape)

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                tape.replay()

        return replay
