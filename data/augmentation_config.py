"""Strengths of the drawn changes of the camera that `worldvla prepare variants=` encodes episodes under."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from data.errors import InputError

_MOST = {
    "crop": 0.5,
    "shift": 0.5,
    "rotation": 45.0,
    "zoom": 1.0,
    "brightness": 0.9,
    "contrast": 0.9,
    "saturation": 1.0,
    "hue": 180.0,
    "blur": 32.0,
    "motion": 64.0,
    "noise": 1.0,
    "seed": 2.0**53,
}


@dataclass
class AugmentationConfig:
    """Largest changes of the camera; each variant of an episode draws its own up to them. 0 switches one off.

    Attributes:
        crop: Share of the sides that is cut away, at a drawn place; the rest is enlarged to the whole.
        shift: Share of the sides by which the picture moves, either way, across and down.
        rotation: Degrees by which it turns, either way.
        zoom: The picture becomes at most 1 + `zoom` times as large, or as small.
        brightness: All values are multiplied by 1 - `brightness` to 1 + `brightness`.
        contrast: Distances from the middle grey are multiplied by 1 - `contrast` to 1 + `contrast`.
        saturation: Distances from the pixel's own grey, likewise.
        hue: Degrees by which colours turn around the axis of greys, either way.
        blur: Standard deviation of a Gaussian blur, in pixels of a frame of 256; smaller frames have less.
        motion: Length of a motion blur along a drawn line, in pixels of a frame of 256.
        noise: Standard deviation of Gaussian noise on every value, as a share of the full range; fresh in
            every frame, as a sensor's is.
        seed: Another one draws other changes.
    """

    crop: float = 0.1
    shift: float = 0.1
    rotation: float = 8.0
    zoom: float = 0.15
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.4
    hue: float = 10.0
    blur: float = 5.0
    motion: float = 12.0
    noise: float = 0.04
    seed: int = 0

    def numbers(self) -> dict[str, float]:
        """All settings by their names, as the index of a data set holds them."""
        return {name: float(value) for name, value in asdict(self).items()}

    def check(self) -> None:
        """Refuse settings that are negative or too large, and strengths that change nothing (InputError)."""
        for name, value in self.numbers().items():
            if not 0 <= value <= _MOST[name]:
                raise InputError(f"augmentation.{name} is {value:g}, expected 0 to {_MOST[name]:g}")
        if not any(value for name, value in self.numbers().items() if name != "seed"):
            names = ", ".join(name for name in _MOST if name != "seed")
            raise InputError(
                f"augmentation: every strength is 0, so variants would be copies; set one of {names}, or "
                "variants=0"
            )
