"""A folder of published weights in safetensors, checked before a byte of a tensor is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from data.errors import InputError
from data.storage.bulk_store import Block
from pretrain.checkpoint.tensor_blocks import tensor_blocks
from pretrain.convert.chameleon import (
    ACTION_QUERIES,
    ROTARY_SUFFIX,
    VQ_PREFIX,
    action_head_config,
    model_config,
    norm_heads,
    other_codes,
)
from pretrain.convert.tensor_files import TensorFile, read_object
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ACTION_HEAD = "action_head.safetensors"  # beside them in the layout of transformers, whose class has no head
_MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of the network and the file that holds it.

    Attributes:
        file: The file.
        name: Its name there and in the network.
        repeats: Heads that share each stored row of a q/k norm; 1: it is stored in the network's shape.
    """

    file: TensorFile
    name: str
    repeats: int = 1

    @property
    def dtype(self) -> str:
        """Of `manifest.DTYPES`."""
        return self.file.entries[self.name].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """In the network."""
        stored = self.file.entries[self.name].shape
        return stored if self.repeats == 1 else (stored[0] * self.repeats, *stored[1:])

    def tensor(self) -> Tensor:
        """The tensor, in memory of its own."""
        stored = self.file.tensor(self.name)
        return stored if self.repeats == 1 else stored.repeat_interleave(self.repeats, 0)

    def blocks(self) -> Iterator[Block]:
        """Its bytes in the network's shape, block by block."""
        return self.file.blocks(self.name) if self.repeats == 1 else tensor_blocks(self.tensor())


@dataclass(frozen=True, slots=True)
class WeightsFolder:
    """Weights that fit their settings.

    Attributes:
        model: Our settings of the network.
        tensors: The network's tensors by name, in the order of the files.
        left_out: Number of tensors that are not the network's, by what they are.
        other_codes: Number of image codes whose ids in its vocabulary are not ours.
    """

    model: ModelConfig
    tensors: Mapping[str, SourceTensor]
    left_out: Mapping[str, int]
    other_codes: int


def open_weights_folder(folder: Path) -> WeightsFolder:
    """Check a folder: `config.json`, the files and every name and shape.

    Raises:
        InputError: No such folder or not in safetensors, an index that names files elsewhere, or tensors
            that are not those of the network in `config.json` (listed).
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder}: no {CONFIG} there; expected a folder as transformers' save_pretrained writes it"
        )
    values = read_object(folder / CONFIG)
    config = model_config(values, folder / CONFIG)
    tensors = {
        name: SourceTensor(file, name, _shared_by(config, name, entry.shape))
        for file in _weight_files(folder).values()
        for name, entry in file.entries.items()
    }
    vq = [name for name in tensors if name.startswith(VQ_PREFIX)]
    rotary = [name for name in tensors if name.endswith(ROTARY_SUFFIX)]
    for name in vq + rotary:
        del tensors[name]
    queries = tensors[ACTION_QUERIES].shape if ACTION_QUERIES in tensors else None
    head = action_head_config(values, queries, config.hidden_size, folder / CONFIG)
    config = replace(config, action_head=head)
    check_shapes(folder, config, {name: tensor.shape for name, tensor in tensors.items()})
    left_out = {"of the image encoder (vqmodel)": len(vq), "tables of the rotary embedding": len(rotary)}
    left_out = {what: count for what, count in left_out.items() if count}
    return WeightsFolder(config, tensors, left_out, other_codes(values))


def _shared_by(config: ModelConfig, name: str, shape: tuple[int, ...]) -> int:
    """Heads that share each row of a q/k norm; 1 for all other tensors and for other shapes.

    Lumina-mGPT's and WorldVLA's class stores [model_parallel_size, head size], [1, 128] for the 7B: its
    forward pass repeats a row for the heads of one model-parallel rank.
    """
    heads = norm_heads(config, name)
    if heads is None:
        return 1
    fits = len(shape) == 2 and shape[1] == config.head_size and shape[0] and not heads % shape[0]
    return heads // shape[0] if fits else 1


def check_shapes(where: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the shapes of tensors, by name, with the network of `config`; `where` leads the message.

    Raises:
        InputError: Names that are missing or too many, or other shapes: the first few and their number.
    """
    expected = expected_shapes(config)
    kinds = {
        "missing": [name for name in expected if name not in shapes],
        "not of the network": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} {list(shapes[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    if any(kinds.values()):
        wrong = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)
        raise InputError(
            f"{where}: its tensors are not those of the network that its settings describe ({wrong}); "
            "expected settings and weights of one model, in the layout of transformers' "
            "ChameleonForConditionalGeneration"
        )


def listed(lines: Iterable[str]) -> str:
    """Join the first few lines and the number of the others."""
    lines = list(lines)
    more = f" and {len(lines) - _MAX_LISTED} more" if len(lines) > _MAX_LISTED else ""
    return ", ".join(lines[:_MAX_LISTED]) + more


def _weight_files(folder: Path) -> dict[str, TensorFile]:
    """Open the weight files, by name; every tensor is in exactly one."""
    if (folder / INDEX).is_file():
        return _with_action_head(folder, _indexed_files(folder))
    if (folder / SINGLE).is_file():
        return _with_action_head(folder, {SINGLE: TensorFile(folder / SINGLE)})
    if pickles := sorted(path.name for ending in ("bin", "pt", "pth") for path in folder.glob(f"*.{ending}")):
        raise InputError(
            f"{folder}: weights as pickle ({listed(pickles)}), which can run any program when read; where "
            "you trust them, load them with transformers and save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"{folder}: neither {INDEX} nor {SINGLE} there; is the download complete?")


def _with_action_head(folder: Path, files: dict[str, TensorFile]) -> dict[str, TensorFile]:
    """The weight files and that of the action head, if there is one."""
    path = folder / ACTION_HEAD
    if ACTION_HEAD in files or not path.is_file():
        return files
    head = TensorFile(path)
    if double := [name for file in files.values() for name in file.entries if name in head.entries]:
        raise InputError(f"{path}: holds {listed(double)}, as another file does; remove one of them")
    return files | {ACTION_HEAD: head}


def _indexed_files(folder: Path) -> dict[str, TensorFile]:
    path = folder / INDEX
    if (folder / SINGLE).is_file():
        raise InputError(f"{folder}: both {INDEX} and {SINGLE} there; remove the one that is left over")
    weights = read_object(path).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise InputError(f"{path}: no weight_map from tensor names to file names there; download it again")
    names = sorted(set(weights.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise InputError(f"{path}: names the file {name!r}, expected *.safetensors in the same folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InputError(f"{folder}: {listed(missing)} missing; is the download complete?")
    files = {name: TensorFile(folder / name) for name in names}
    counts = Counter(name for file in files.values() for name in file.entries)
    wrong = [f"{name} is in {count} files" for name, count in counts.items() if count > 1]
    wrong += [
        f"{name} is not in {file_name}"
        for name, file_name in weights.items()
        if name not in files[file_name].entries
    ]
    wrong += [f"{name} is not in the index" for name in counts if name not in weights]
    if wrong:
        raise InputError(f"{path}: does not fit its files: {listed(wrong)}; download all of them again")
    return files
