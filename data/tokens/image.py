"""Frames to image codes and back: the VQ-GAN with its weights, behind numpy arrays."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import asdict, fields, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from data.errors import InputError
from data.files import write_whole
from data.safetensors_header import HeaderError, read_header
from data.tokens.image_model import ImageModel, ImageModelConfig

SHIPPED_WEIGHTS = "image_tokenizer_64px.safetensors"
_METADATA_KEY = "image_model"
_MAX_CODES = 1 << 16  # codes are stored as uint16
_FRAMES_AT_ONCE = 64


class ImageTokenizer:
    """A trained VQ-GAN. Frames are uint8 RGB [N, H, W, 3], codes uint16 [N, R, C].

    Weights may be stored in half precision; arithmetic is always fp32, so that codes depend on nothing
    but frames and weights (a near-tie between two entries may still fall differently on another
    processor).
    """

    def __init__(
        self,
        model: ImageModel,
        dtype: torch.dtype = torch.float16,
        device: str | torch.device = "cpu",
        sha256: str | None = None,
    ) -> None:
        """Take a network whose weights are rounded to `dtype`, the precision in which they are saved.

        `sha256` is the checksum of the file that they were read from; None: that of the file `save` writes.
        """
        self._dtype = dtype
        self._device = torch.device(device)
        self._model = model.to(dtype).to(self._device, torch.float32).eval().requires_grad_(False)
        self._sha256 = sha256 or hashlib.sha256(self._serialised()).hexdigest()

    @classmethod
    def load(
        cls, path: str | Path | None = None, device: str | torch.device = "cpu", pixels: int | None = None
    ) -> ImageTokenizer:
        """Read weights written by `save`.

        Args:
            path: Safetensors file; None: the 64-pixel tokenizer of the package.
            device: Device of the network.
            pixels: Side of the frames, where it differs from the side in the file (the network is
                convolutional, and Chameleon's works at 256 as well as 512 pixels).

        Raises:
            InputError: The file is missing, is no image tokenizer, or its tensors do not fit its settings.
        """
        if path is None:
            file = resources.files("data.tokens") / "assets" / SHIPPED_WEIGHTS
            name, payload = SHIPPED_WEIGHTS, file.read_bytes()
        else:
            name, payload = str(path), _read(Path(path))
        config = _read_config(name, payload)
        tensors = load_tensors(payload)
        try:
            config = config if pixels is None else replace(config, pixels=pixels)
        except ValueError as error:
            raise InputError(
                f"{name}: cannot be used with {pixels} px ({error}); give another side"
            ) from error
        with torch.device("meta"):  # nothing is allocated before the shapes are known to fit
            model = ImageModel(config)
        _check_tensors(name, model, tensors)
        model.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
        checksum = hashlib.sha256(payload).hexdigest()
        return cls(model, next(iter(tensors.values())).dtype, device, checksum)

    def save(self, path: str | Path) -> None:
        """Write weights and settings to one safetensors file; the same weights give the same bytes."""
        write_whole(Path(path), self._serialised())

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Frames uint8 [N, H, W, 3] -> codes uint16 [N, R, C].

        Raises:
            InputError: The frames are not uint8 RGB of this tokenizer's side.
        """
        expected = (self.pixels, self.pixels, 3)
        if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != np.uint8:
            raise InputError(
                f"the image tokenizer got frames of {frames.dtype} {frames.shape}, expected uint8 "
                f"[N, {self.pixels}, {self.pixels}, 3]; resize the frames or take another tokenizer"
            )
        parts = [
            self._encode(frames[i : i + _FRAMES_AT_ONCE]) for i in range(0, len(frames), _FRAMES_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.rows, self.columns), np.uint16)

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Codes integer [N, R, C], each below `codebook_size` -> frames uint8 [N, H, W, 3].

        Raises:
            InputError: The grid is not this tokenizer's, or a code is out of range.
        """
        if codes.ndim != 3 or codes.shape[1:] != (self.rows, self.columns):
            raise InputError(
                f"the image tokenizer got codes of shape {codes.shape}, expected [N, {self.rows}, "
                f"{self.columns}]; decode them with the tokenizer that made them"
            )
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise InputError(
                f"image codes range from {codes.min()} to {codes.max()}, expected 0 to "
                f"{self.codebook_size - 1}; decode them with the tokenizer that made them"
            )
        starts = range(0, len(codes), _FRAMES_AT_ONCE)
        parts = [self._decode(codes[i : i + _FRAMES_AT_ONCE]) for i in starts]
        return np.concatenate(parts) if parts else np.empty((0, self.pixels, self.pixels, 3), np.uint8)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights by name, in the precision that `save` writes."""
        return {
            key: value.to("cpu", self._dtype).contiguous() for key, value in self._model.state_dict().items()
        }

    @property
    def config(self) -> ImageModelConfig:
        """Sizes of the network."""
        return self._model.config

    @property
    def pixels(self) -> int:
        """Side of the frames."""
        return self.config.pixels

    @property
    def downsample(self) -> int:
        """Pixels along the side of one code."""
        return self.config.downsample

    @property
    def rows(self) -> int:
        """Rows of codes in a frame."""
        return self.pixels // self.downsample

    @property
    def columns(self) -> int:
        """Columns of codes in a frame."""
        return self.pixels // self.downsample

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.config.codebook_size

    @property
    def sha256(self) -> str:
        """Checksum of the weights' file, written into every dataset made with them."""
        return self._sha256

    @torch.inference_mode()
    def _encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        with _exact_convolutions():
            codes = self._model.encode(frames_to_tensor(frames, self._device))
        return codes.cpu().numpy().astype(np.uint16)

    @torch.inference_mode()
    def _decode(self, codes: NDArray[np.integer]) -> NDArray[np.uint8]:
        indices = torch.as_tensor(codes.astype(np.int64)).to(self._device)
        with _exact_convolutions():
            return tensor_to_frames(self._model.decode(indices))

    def _serialised(self) -> bytes:
        return save_tensors(self.tensors(), {_METADATA_KEY: json.dumps(asdict(self.config), sort_keys=True)})


def _exact_convolutions() -> AbstractContextManager[None]:
    """Disable TF32 convolutions, the default on a GPU, which would give other codes than a CPU."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def frames_to_tensor(frames: NDArray[np.uint8], device: str | torch.device = "cpu") -> torch.Tensor:
    """Frames uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [-1, 1]."""
    tensor = torch.as_tensor(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2)
    return tensor.float() / 127.5 - 1.0


def tensor_to_frames(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Float [N, 3, H, W] in about [-1, 1] -> frames uint8 [N, H, W, 3], clipped and rounded."""
    scaled = ((tensor.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the image tokenizer ({error.strerror}); expected a safetensors file made "
            "by `worldvla vq`"
        ) from error


def _read_config(name: str, payload: bytes) -> ImageModelConfig:
    """Settings from the metadata of the safetensors header."""
    try:
        metadata = read_header(payload).metadata
    except HeaderError as error:
        raise InputError(
            f"{name}: not a complete safetensors file ({error}); make one with `worldvla vq`"
        ) from error
    try:
        values = json.loads(metadata[_METADATA_KEY])
        known = {field.name: values[field.name] for field in fields(ImageModelConfig)}
        for key in ("channel_multiplier", "attention_resolutions"):
            known[key] = tuple(known[key])
        config = ImageModelConfig(**known)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{name}: no valid image tokenizer settings in its header; expected a safetensors file made by "
            "`worldvla vq`"
        ) from error
    if config.codebook_size > _MAX_CODES:
        raise InputError(f"{name}: {config.codebook_size} codes, expected at most {_MAX_CODES}")
    return config


def _check_tensors(name: str, model: ImageModel, tensors: dict[str, torch.Tensor]) -> None:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        raise InputError(
            f"{name}: {len(wrong)} tensors do not fit its settings, first {key}: found {found.get(key)}, "
            f"expected {expected.get(key)}; make the file again with `worldvla vq`"
        )
