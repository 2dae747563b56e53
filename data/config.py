"""Settings of the token stream and of `worldvla prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class MixtureConfig:
    """Relative weights of the two kinds of sample (WorldVLA: about 1 : 1 per frame)."""

    action: float = 1.0
    world: float = 1.0


@dataclass
class DataConfig:
    """Where the shards are and how samples are cut from episodes.

    Attributes:
        url: Folder or object-store prefix that holds `index.json` and the shards.
        history: M, frames an action sample sees (t-M+1 .. t; fewer at an episode's start).
        chunk: K, actions an action sample predicts; only windows with all K are used.
        camera: Camera whose frames are used.
        mixture: Shares of action and world samples.
        text_tokenizer: Path of a Chameleon `tokenizer.json`; null takes the small one that ships.
        image_tokenizer: The VQ-GAN weights that the shards were prepared with; null takes the ones that
            ship. Kept beside the checkpoints, so that a policy can see.
    """

    url: str = "???"
    history: int = 2
    chunk: int = 5
    camera: str = "agent"
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    text_tokenizer: str | None = None
    image_tokenizer: str | None = None


@dataclass
class PrepareConfig:
    """Settings of `worldvla prepare`.

    Attributes:
        source: Folder of LIBERO-layout HDF5 files.
        out: Folder or URL that receives shards and index.
        resolution: Side in pixels that frames are resized to.
        image_tokenizer: VQ-GAN weights (safetensors); null takes the small one that ships.
        shard_megabytes: Size at which a new shard is begun.
        batch_size: Frames encoded at once.
    """

    source: str = "???"
    out: str = "???"
    resolution: int = 64
    image_tokenizer: str | None = None
    shard_megabytes: int = 64
    batch_size: int = 64
