"""Folders of Hugging Face weights for the tests of conversion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.model.config import ModelConfig
from tests.support.chameleon import chameleon

SMALL = ModelConfig(
    vocabulary_size=320,
    hidden_size=32,
    ffn_size=48,
    layers=2,
    heads=4,
    key_value_heads=2,
    max_positions=128,
    dropout=0.0,
)


def save(folder: Path, config: ModelConfig = SMALL, shard: str = "20KB", dtype: Any = None) -> Any:
    """Write a random Chameleon as transformers does; the model."""
    model = chameleon(config)
    if isinstance(dtype, torch.dtype):
        model = model.to(dtype)
    elif dtype == "mixed":
        for number, parameter in enumerate(model.parameters()):
            parameter.data = parameter.data.to((torch.float32, torch.bfloat16, torch.float16)[number % 3])
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def network(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the image encoder."""
    return {name: tensor for name, tensor in weights.items() if "vqmodel" not in name}


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Read, change, write."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors, which are then in one file."""
    found = tensors(folder)
    change(found)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def bitwise(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether names, dtypes, shapes and bytes are the same."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and torch.equal(
            first[name].contiguous().view(torch.uint8), second[name].contiguous().view(torch.uint8)
        )
        for name in first
    )
