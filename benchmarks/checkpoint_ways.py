"""Ways of saving one engine's state: ours, DeepSpeed's and those of torch's distributed checkpoint (DCP)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

OURS, AT_ONCE, DEEPSPEED = "ours", "ours, copied at once", "DeepSpeed"
DCP, DCP_ASYNC, DCP_STAGER = "torch DCP", "torch DCP async_save", "torch DCP async_save, DefaultStager"
WAYS = (OURS, AT_ONCE, DEEPSPEED, DCP, DCP_ASYNC, DCP_STAGER)


@dataclass(frozen=True, slots=True)
class Way:
    """A way of saving and loading; every rank has one and calls it alike.

    Attributes:
        save: Starts a save, and returns a function that waits for its end.
        load: Loads what was saved into the engine.
        take_wait: Seconds for which updates have waited for the save's copies since the last call.
    """

    save: Callable[[], Callable[[], object]]
    load: Callable[[], object]
    take_wait: Callable[[], float] = lambda: 0.0


def make_ways(engine: Engine, folder: Path) -> dict[str, Way]:
    """All ways by name; each saves the same: fp32 weights, their moments and the count of updates."""
    from pretrain.checkpoint.load import load
    from pretrain.checkpoint.location import step_folder
    from pretrain.checkpoint.save import CheckpointWriter

    writer = CheckpointWriter(folder, engine)
    deepspeed = engine.deepspeed_engine

    def save_ours() -> Callable[[], object]:
        writer.save(1, {"tokens": 0})
        return writer.wait

    def save_at_once() -> Callable[[], object]:
        finish = save_ours()
        engine.prepare_change()
        writer.take_wait()  # part of the call already
        return finish

    def save_deepspeed() -> Callable[[], object]:
        deepspeed.save_checkpoint(str(folder), tag="1")
        return _nothing

    def load_ours() -> object:
        return load(step_folder(folder, 1), engine)

    return {
        OURS: Way(save_ours, load_ours, writer.take_wait),
        AT_ONCE: Way(save_at_once, load_ours),
        DEEPSPEED: Way(save_deepspeed, lambda: deepspeed.load_checkpoint(str(folder), tag="1")),
        **_dcp_ways(engine, folder),
    }


def _dcp_ways(engine: Engine, folder: Path) -> dict[str, Way]:
    """DCP's: from the engine's memory, copied before `async_save` returns, and by its stager's thread.

    The stagers copy plain tensors only, so there each rank's parts have names of their own.
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
    from torch.distributed.checkpoint.state_dict_saver import async_save
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    from pretrain.checkpoint.boxed_tensor import BoxedTensor
    from pretrain.checkpoint.fragments import fragments, optimizer_step

    group: Any = dist.new_group(backend="gloo")  # the training uses the others at the same time
    # Pinned and shared memory and streams are for GPUs; its thread is what overlaps.
    stager = DefaultStager(StagingOptions(False, False, True, False))
    waits = _Waits()

    def boxes(step: int) -> dict[str, Any]:
        """The engine's own memory, which DCP writes from and reads into."""
        return {
            f"{kind}/{part.name}": BoxedTensor(part.shape, part.boxes, values)
            for part in fragments(engine)
            for kind, values in part.states.items()
        } | {"step": torch.tensor(step)}

    def plain(step: int) -> dict[str, Any]:
        return {
            f"{dist.get_rank()}/{kind}/{part.name}": values
            for part in fragments(engine)
            if part.is_writer
            for kind, values in part.states.items()
        } | {"step": torch.tensor(step)}

    def save() -> Callable[[], object]:
        dcp_save(boxes(optimizer_step(engine)), checkpoint_id=folder)
        return _nothing

    def save_async() -> Callable[[], object]:
        future: Any = async_save(plain(optimizer_step(engine)), checkpoint_id=folder, process_group=group)
        return future.result

    def save_staged() -> Callable[[], object]:
        state = plain(optimizer_step(engine))
        saving: Any = async_save(state, checkpoint_id=folder, process_group=group, async_stager=stager)
        engine.before_next_change(lambda: waits.wait(saving.staging_completion.result))
        return saving.upload_completion.result

    return {
        DCP: Way(save, lambda: dcp_load(boxes(0), checkpoint_id=folder)),
        DCP_ASYNC: Way(save_async, lambda: dcp_load(plain(0), checkpoint_id=folder)),
        DCP_STAGER: Way(save_staged, lambda: dcp_load(plain(0), checkpoint_id=folder), waits.take),
    }


class _Waits:
    """Adds up the seconds of waiting."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def wait(self, end: Callable[[], object]) -> None:
        start = time.perf_counter()
        end()
        self._seconds += time.perf_counter() - start

    def take(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _nothing() -> None:
    """Nothing to wait for."""
