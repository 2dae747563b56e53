"""Codes are computed in exact fp32 arithmetic, whatever the default of the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.tokens.image import ImageTokenizer


def test_neither_encoder_nor_decoder_rounds_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[bool] = []
    original = torch.nn.Conv2d.forward

    def forward(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        allowed.append(torch.backends.cudnn.allow_tf32)
        return original(self, x)

    before = torch.backends.cudnn.allow_tf32
    tokenizer = ImageTokenizer.load()
    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    codes = tokenizer.encode(np.zeros((1, 64, 64, 3), np.uint8))
    encoded = len(allowed)
    tokenizer.decode(codes)
    assert 0 < encoded < len(allowed)
    assert not any(allowed)
    assert torch.backends.cudnn.allow_tf32 == before


def test_an_absurdly_nested_header_is_refused(tmp_path: Path) -> None:
    header = b"[" * 100_000
    path = tmp_path / "nested.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="header is no JSON object"):
        ImageTokenizer.load(path)
