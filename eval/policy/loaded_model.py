"""Trained weights with their tokenizers and settings: of a run's checkpoint, or exported ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from data.config import DataConfig
from data.contracts import WeightsChoice
from data.errors import InputError
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from eval.config import ExportedConfig, Precision
from eval.policy.description import describe
from eval.policy.precision import DTYPES, Arithmetic, chosen_arithmetic, chosen_device
from pretrain.checkpoint.policy_files import run_data, run_model
from pretrain.checkpoint.weights import load_weights
from pretrain.convert.source import CONFIG, open_weights_folder
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer
from pretrain.policy_settings import PolicySettings
from pretrain.run_layout import RunLayout


@dataclass(frozen=True)
class LoadedModel:
    """Weights and everything needed to use them.

    Attributes:
        data: Data settings of its run; of exported weights only history and cameras.
        network: The transformer in evaluation mode.
        text: Its text tokenizer.
        image: Its image tokenizer.
        settings: History, cameras, embodiment, chunk and ranges of each data set, decoders and checksums of
            the tokenizers.
        notes: What could not be verified, and what was assumed.
        dataset: Fingerprint of the data that it was trained on; None: not known.
        precision: Arithmetic of the network, whose weights are rounded to it; the tokenizer's is fp32.
        weights: Which weights of a checkpoint these are, in words; None: exported ones.
    """

    data: DataConfig
    network: Transformer
    text: TextTokenizer
    image: ImageTokenizer
    settings: PolicySettings
    notes: tuple[str, ...] = ()
    dataset: str | None = None
    precision: Arithmetic = "fp32"
    weights: str | None = None


def load_model(
    path: Path,
    exported: ExportedConfig | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    weights: WeightsChoice = "auto",
) -> LoadedModel:
    """Load a folder of weights of either kind.

    Args:
        path: A run's checkpoint `runs/<name>/checkpoints/step_...`, or a folder with `config.json` and
            safetensors files, as `worldvla convert export` and transformers write it.
        exported: Files and settings beside a folder of the second kind; None: such a folder is refused.
        device: Device it computes on; None takes a GPU if there is one.
        precision: Arithmetic of the network.
        weights: Which weights of a checkpoint are loaded.

    Raises:
        InputError: As `describe`, or the weights do not fit their settings.
    """
    device, arithmetic = chosen_device(device), chosen_arithmetic(precision, device)
    description = describe(path, exported, weights)
    settings = description.settings
    text = TextTokenizer.load(description.text_tokenizer)
    image = ImageTokenizer.load(description.image_tokenizer, device=device, pixels=settings.pixels)
    is_export = (path / CONFIG).is_file()
    data, network = _load_exported(path) if is_export else _load_checkpoint(path, weights)
    data = replace(data, history=settings.history, cameras=list(settings.cameras))
    return LoadedModel(
        data,
        network.to(device, DTYPES[arithmetic]),
        text,
        image,
        settings,
        description.notes,
        description.dataset,
        arithmetic,
        description.weights,
    )


def _load_checkpoint(checkpoint: Path, choice: WeightsChoice) -> tuple[DataConfig, Transformer]:
    run = RunLayout.of_checkpoint(checkpoint)
    return run_data(run), _network(run_model(run), checkpoint, load_weights(checkpoint, choice=choice))


def _load_exported(folder: Path) -> tuple[DataConfig, Transformer]:
    source = open_weights_folder(folder)
    weights = {name: stored.tensor().float() for name, stored in source.tensors.items()}
    return DataConfig(), _network(source.model, folder, weights)


def _network(config: ModelConfig, checkpoint: Path, weights: dict[str, Tensor]) -> Transformer:
    """The plain transformer with a checkpoint's weights."""
    with torch.device("meta"):
        network = Transformer(config)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected | shapes if expected.get(name) != shapes.get(name))
    if wrong:
        raise InputError(
            f"{checkpoint}: {len(wrong)} tensors do not fit the model of its settings, first "
            f"{wrong[0]}: found {shapes.get(wrong[0])}, expected {expected.get(wrong[0])}"
        )
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
