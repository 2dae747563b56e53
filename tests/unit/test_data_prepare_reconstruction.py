from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.config import PrepareConfig
from data.contracts import Demonstration
from data.prepare import reconstruction
from data.prepare.reconstruction import reconstruction_psnr
from data.sources.interface import DemonstrationReference


class OffBy:
    """Decodes every frame brighter by a constant."""

    pixels = 4

    def __init__(self, error: int) -> None:
        self.error = error
        self.seen = 0

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        self.seen += len(frames)
        return frames.astype(np.uint16)

    def decode(self, codes: NDArray[np.uint16]) -> NDArray[np.uint8]:
        return (codes + self.error).astype(np.uint8)


@pytest.fixture(autouse=True)
def demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    references = [
        DemonstrationReference(Path(name), group, f"{name}/{group}", "suite", name, "do it", 50, ("agent",))
        for name in ("a", "b")
        for group in ("demo_0", "demo_1")
    ]

    class Recorded:
        def references(self) -> list[DemonstrationReference]:
            return references

        def read(self, reference: DemonstrationReference) -> Demonstration:
            assert reference.item == "demo_1", "only the last demonstration of a task is held out"
            frames = np.full((50, 4, 4, 3), 100, np.uint8)
            actions, states = np.zeros((50, 7)), np.zeros((50, 8), np.float32)
            return Demonstration(reference.key, "suite", "a", "do it", {"agent": frames}, actions, states)

    monkeypatch.setattr(reconstruction, "open_source", lambda config: Recorded())


def test_psnr_of_a_constant_error() -> None:
    codec = OffBy(5)
    found = reconstruction_psnr(PrepareConfig("unused"), codec, frames=8)
    assert found == {"agent": pytest.approx(20 * math.log10(255 / 5))}
    assert codec.seen == 16


def test_psnr_of_no_error_is_infinite() -> None:
    assert reconstruction_psnr(PrepareConfig("unused"), OffBy(0)) == {"agent": math.inf}


@pytest.mark.parametrize(("file", "held_out"), [("a_demo.hdf5", "demo_9"), ("a", "demo_11")])
def test_frames_are_those_of_the_demonstration_that_is_held_out(
    file: str, held_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    class Recorded:
        def references(self) -> list[DemonstrationReference]:
            names = [f"demo_{number}" for number in range(12)]
            return [
                DemonstrationReference(Path(file), name, f"a/{name}", "suite", "a", "do it", 5, ("agent",))
                for name in names
            ]

        def read(self, reference: DemonstrationReference) -> Demonstration:
            read.append(reference.item)
            frames = np.full((5, 4, 4, 3), 100, np.uint8)
            actions, states = np.zeros((5, 7)), np.zeros((5, 8), np.float32)
            return Demonstration(reference.key, "suite", "a", "do it", {"agent": frames}, actions, states)

    monkeypatch.setattr(reconstruction, "open_source", lambda config: Recorded())
    reconstruction_psnr(PrepareConfig("unused"), OffBy(1))
    assert read == [held_out]
