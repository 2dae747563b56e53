from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pretrain.checkpoint import staging
from pretrain.checkpoint.staging import Copy, DeviceCopies, HostCopies, plan_copies


@given(
    counts=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=12),
    shuffle=st.randoms(use_true_random=False),
    largest=st.integers(9, 40),
)
def test_copies_cover_every_source_and_join_neighbours(
    counts: list[tuple[int, int]], shuffle: Any, largest: int
) -> None:
    flat, names, offset = torch.arange(200.0), [], 0
    views: dict[str, Tensor] = {"alone": torch.full((4,), -1.0)}
    for number, (count, gap) in enumerate(counts):
        names.append(f"x{number}")
        views[names[-1]] = flat[offset : offset + count]
        offset += count + gap
    shuffled = list(views.items())
    shuffle.shuffle(shuffled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "_LARGEST_GAP", 2)
        patch.setattr(staging, "_LARGEST_COPY", largest)
        copies, parts = plan_copies(dict(shuffled))
    host = HostCopies(copies)
    host.start()
    host.run()
    assert parts.keys() == views.keys()
    assert all(torch.equal(parts[name], views[name]) for name in views)
    assert all(copy.source.numel() <= largest for copy in copies)
    assert len(copies) >= 2, "memory of two kinds"
    if offset <= largest and all(gap <= 2 for _, gap in counts):
        assert len(copies) == 2, "neighbours together"


class Device:
    """Stands in for `torch.cuda`: what streams are told is written down; copies happen at once."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.clock = 0.0  # milliseconds
        self.reached = True
        self.training, self.active = Stream(self, "training"), None

    def Stream(self) -> Stream:  # noqa: N802 - torch's name
        return Stream(self, "copies")

    def Event(self, enable_timing: bool) -> Event:  # noqa: N802 - torch's name
        return Event(self)

    def current_stream(self) -> Stream:
        return self.active or self.training

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.active = stream
        yield
        self.active = None


class Stream:
    def __init__(self, device: Device, name: str) -> None:
        self.device, self.name = device, name

    def wait_stream(self, other: Stream) -> None:
        self.device.told.append((self.name, "waits for", other.name))

    def wait_event(self, event: Event) -> None:
        self.device.told.append((self.name, "waits for event of", event.stream))


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.time, self.stream = device, 0.0, ""

    def record(self, stream: Stream) -> None:
        self.stream, self.time = stream.name, self.device.clock
        self.device.told.append((stream.name, "records"))

    def synchronize(self) -> None:
        self.device.told.append(("host", "waits for event of", self.stream))

    def query(self) -> bool:
        return self.device.reached

    def elapsed_time(self, end: Event) -> float:
        return end.time - self.time


def test_a_gpu_copies_behind_the_work_so_far_and_before_the_next_change() -> None:
    device, source, target = Device(), torch.arange(3.0), torch.zeros(3)
    copies = DeviceCopies([Copy(source, target)], device)
    copies.start()
    assert target.tolist() == [0, 1, 2]
    assert device.told == [("copies", "waits for", "training"), ("copies", "records")]
    device.told.clear()
    copies.wait_before_change()
    assert device.told == [("training", "records"), ("training", "waits for event of", "copies")]
    device.told.clear()
    copies.run()
    assert device.told == [("host", "waits for event of", "copies")], "the thread that saves waits, too"


def test_the_wait_of_a_gpu_is_told_when_it_is_known_and_once() -> None:
    device = Device()
    copies = DeviceCopies([], device)
    device.clock = 30.0
    copies.start()  # the copies end at 30 ms
    device.clock, device.reached = 10.0, False
    copies.wait_before_change()  # the training was there at 10 ms
    assert copies.take_wait() == 0.0
    device.reached = True
    assert copies.take_wait() == pytest.approx(0.02)
    assert copies.take_wait() == 0.0
    device.clock = 50.0
    copies.wait_before_change()
    assert copies.take_wait() == 0.0, "the copies were made long before"
