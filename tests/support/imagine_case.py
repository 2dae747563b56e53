"""A world model that adds one to every image code in a time step: a few episodes, and what its run loads."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from data.config import DataConfig, PrepareConfig
from data.prepare.preparer import Preparer, prepare
from data.storage.index import DatasetIndex
from data.tokens.image import ImageTokenizer
from data.tokens.image_block import image_block_length, image_codes
from data.tokens.image_model import ImageModel, ImageModelConfig
from data.tokens.text import TextTokenizer
from data.tokens.vocabulary import ACTION_START, IMAGE_START
from eval.config import ImagineConfig
from eval.policy.loaded_model import LoadedModel
from eval.world_model import imagine as world_model
from eval.world_model import rollout
from pretrain.model.generate_images import Guidance
from pretrain.model.sampling import Sampling
from pretrain.policy_settings import PolicySettings
from pretrain.sources import libero_source
from tests.support.libero_layout import demonstration, write_file

PIXELS = 64
CODEBOOK = 16
BOTH = ["agent", "wrist"]
EPISODE = "lift/demo_7"  # seven time steps
PROMPTS: list[list[int]] = []
REQUESTS: list[tuple[Sampling, Guidance]] = []


def image_tokenizer() -> ImageTokenizer:
    """A small one with random weights."""
    torch.manual_seed(0)
    network = ImageModel(
        ImageModelConfig(
            pixels=PIXELS, codebook_size=CODEBOOK, embedding_size=4, latent_channels=8, base_channels=8,
            channel_multiplier=(1, 1, 1, 2), residual_blocks=1, norm_groups=4,
        )
    )  # fmt: skip
    torch.nn.init.normal_(network.quantize.embedding.weight)
    return ImageTokenizer(network)


def prepare_data(folder: Path, image: ImageTokenizer) -> None:
    """Twelve demonstrations of seven steps in `folder/demos`, their shards in `folder/data`."""
    demonstrations = [demonstration(steps=7, seed=seed) for seed in range(12)]
    write_file(folder / "demos/lift_demo.hdf5", demonstrations, suite="robosuite_lift")
    config = PrepareConfig(source=str(folder / "demos"), out=str(folder / "data"), resolution=PIXELS)
    prepare(Preparer(config, image))


def loaded_model(url: str, image: ImageTokenizer, **changed: Any) -> Any:
    """What a run loads, trained on the data at `url`, without a network."""
    data = changed.get("data", DataConfig(url=url))
    index, text = DatasetIndex.load(url), TextTokenizer.load()
    settings = PolicySettings.of(
        data, PIXELS, (libero_source(data, index.action_ranges),), image.sha256, text.sha256
    )
    network = SimpleNamespace(config=SimpleNamespace(max_positions=4096))
    parts = {"data": data, "network": network, "text": text, "image": image, "settings": settings}
    return LoadedModel(**{**parts, "dataset": index.fingerprint, **changed})


def add_one(
    network: object,
    prompts: list[ArrayLike],
    rows: int,
    columns: int,
    pixels: int,
    codebook_size: int,
    sampling: Sampling,
    guidance: Guidance,
    images: int,
) -> NDArray[np.uint16]:
    """In place of `decode_images`: records its prompts and requests."""
    REQUESTS.append((sampling, guidance))
    assert (rows, columns, pixels) == (8, 8, PIXELS)
    assert codebook_size == CODEBOOK
    predicted = []
    for prompt in prompts:
        ids = np.asarray(prompt)
        PROMPTS.append(ids.tolist())
        shown = images_of(ids)
        steps = images // len(shown)
        assert np.count_nonzero(ids == ACTION_START) == steps
        predicted += [(shown + step) % codebook_size for step in range(1, steps + 1)]
    return np.array(predicted, np.uint16).reshape(len(prompts), images, rows, columns)


def images_of(prompt: ArrayLike) -> NDArray[np.int64]:
    """Codes [V, 8, 8] of the images in a prompt."""
    ids = np.asarray(prompt)
    length = image_block_length(8, 8)
    return np.stack(
        [image_codes(ids[start : start + length]) for start in np.flatnonzero(ids == IMAGE_START)]
    )


def recording_checkpoint(
    prepared: Path,
    folder: Path,
    image: ImageTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    **settings: Any,
) -> Path:
    """A checkpoint, in a copy of `prepare_data`'s folder, whose world model is `add_one`.

    `settings` are those of the data in its training.
    """
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    url = str(folder / "data")
    model = loaded_model(url, image, data=DataConfig(url=url, **settings))
    monkeypatch.setattr(world_model, "load_model", lambda path, **_: model)
    monkeypatch.setattr(rollout, "decode_images", add_one)
    PROMPTS.clear()
    REQUESTS.clear()
    return folder / "runs/demo/checkpoints/step_00000100"


def requested(checkpoint: Path, protocol: str = "tokens", **changed: Any) -> ImagineConfig:
    """Settings of four frames of one episode of `prepare_data`'s folder."""
    config = ImagineConfig(checkpoint=str(checkpoint), frames=4, episode=EPISODE)
    if protocol == "published":
        config = replace(config, protocol="published", source=str(checkpoint.parents[3] / "demos"))
    return replace(config, **changed)
