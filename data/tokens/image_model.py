"""The VQ-GAN that maps frames to codes and back: encoder, codebook, decoder.

The network is the one of Esser et al., "Taming Transformers" (2021), as Chameleon uses it; parameter
names are those of its `vqgan.ckpt`, so that those weights load by name. Only the sizes differ between
Chameleon's tokenizer (the defaults) and the small one of the package. All tensors but codes are floats of
the weights' dtype.

Shape letters: N frames, H W height and width of frames or feature maps, R C rows and columns of codes,
E width of a codebook entry, Z latent channels, D feature channels, V entries of the codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ImageModelConfig:
    """Size of the VQ-GAN. The defaults are Chameleon's.

    Attributes:
        pixels: Side of the square frames.
        codebook_size: Entries of the codebook.
        embedding_size: Width of a codebook entry (E).
        latent_channels: Channels between encoder and codebook (Z).
        base_channels: Channels at full resolution.
        channel_multiplier: Channels of each resolution, as multiples of `base_channels`; each further
            entry halves the side.
        residual_blocks: Residual blocks at each resolution of the encoder (one more in the decoder).
        attention_resolutions: Sides (in pixels, of the feature map) with self-attention, in addition to the
            attention block at the lowest resolution.
        norm_groups: Groups of the group normalisation.
    """

    pixels: int = 512
    codebook_size: int = 8192
    embedding_size: int = 256
    latent_channels: int = 256
    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = (1, 1, 2, 2, 4)
    residual_blocks: int = 2
    attention_resolutions: tuple[int, ...] = ()
    norm_groups: int = 32

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that are impossible or do not divide."""
        sizes = (self.pixels, self.codebook_size, self.embedding_size, self.latent_channels)
        sizes += (self.base_channels, self.residual_blocks, self.norm_groups, *self.channel_multiplier)
        if min(sizes) < 1 or not self.channel_multiplier:
            raise ValueError(f"every size of the image model must be at least 1: {self}")
        if self.pixels % self.downsample:
            raise ValueError(f"pixels={self.pixels} is not a multiple of the downsampling {self.downsample}")
        widths = [self.base_channels * multiplier for multiplier in (1, *self.channel_multiplier)]
        if any(width % self.norm_groups for width in widths):
            raise ValueError(f"channels {widths} are not all multiples of norm_groups={self.norm_groups}")

    @property
    def downsample(self) -> int:
        """Pixels along the side of one code."""
        return 2 ** (len(self.channel_multiplier) - 1)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut: [N, D, H, W] -> [N, D', H, W]."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        """Create two convolutions, and a 1x1 shortcut where the number of channels changes."""
        super().__init__()
        self.norm1 = _norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] -> [N, D', H, W]."""
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map: [N, D, H, W] -> the same."""

    def __init__(self, channels: int, groups: int) -> None:
        """Create the four 1x1 projections of [N, D, H, W]."""
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] -> the same shape: `x` plus the projected attention output."""
        h = self.norm(x)
        q, k, v = (projection(h).flatten(2).transpose(1, 2) for projection in (self.q, self.k, self.v))
        h = functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the side by a strided convolution, padded on the right and bottom only, as in the original."""

    def __init__(self, channels: int) -> None:
        """Create the convolution over D channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] -> [N, D, H/2, W/2]."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by nearest-neighbour interpolation, followed by a convolution."""

    def __init__(self, channels: int) -> None:
        """Create the convolution over D channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] -> [N, D, 2H, 2W]."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention where `attention` is set."""

    def __init__(self, channels_in: int, channels: int, blocks: int, attention: bool, groups: int) -> None:
        """Create `blocks` residual blocks; encoder or decoder add the resampling layer."""
        super().__init__()
        widths = [channels_in] + [channels] * blocks
        self.block = nn.ModuleList(ResidualBlock(widths[i], widths[i + 1], groups) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(channels, groups) for _ in range(blocks if attention else 0))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] -> [N, D', H', W'], where H' is H / 2 or 2 H after resampling, else H."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        """Create the three layers."""
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, R, C] -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Frames [N, 3, H, W] in [-1, 1] -> latents [N, Z, R, C]."""

    def __init__(self, config: ImageModelConfig) -> None:
        """Create one level for each resolution, from fine to coarse."""
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multiplier]
        groups, last = config.norm_groups, len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        levels: list[Level] = []
        width_in = config.base_channels
        for i, width in enumerate(widths):
            attention = config.pixels >> i in config.attention_resolutions
            level = Level(width_in, width, config.residual_blocks, attention, groups)
            level.downsample = Downsample(width) if i < last else None
            levels.append(level)
            width_in = width
        self.down = nn.ModuleList(levels)
        self.mid = Middle(width_in, groups)
        self.norm_out = _norm(width_in, groups)
        self.conv_out = nn.Conv2d(width_in, config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, Z, R, C]."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(functional.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents [N, Z, R, C] -> frames [N, 3, H, W] in about [-1, 1]."""

    def __init__(self, config: ImageModelConfig) -> None:
        """Create one level for each resolution; `up[0]` is the finest and runs last, as in the original."""
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multiplier]
        groups = config.norm_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        levels: list[Level] = []
        width_in = widths[-1]
        for i in reversed(range(len(widths))):
            attention = config.pixels >> i in config.attention_resolutions
            level = Level(width_in, widths[i], config.residual_blocks + 1, attention, groups)
            level.upsample = Upsample(widths[i]) if i > 0 else None
            levels.insert(0, level)
            width_in = widths[i]
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(width_in, groups)
        self.conv_out = nn.Conv2d(width_in, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """[N, Z, R, C] -> [N, 3, H, W]."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(functional.silu(self.norm_out(h)))


class Codebook(nn.Module):
    """The table of code vectors [V, E] and the nearest-neighbour search in it."""

    def __init__(self, size: int, embedding_size: int) -> None:
        """Create uniformly drawn entries [size, embedding_size], as the original."""
        super().__init__()
        self.embedding = nn.Embedding(size, embedding_size)
        nn.init.uniform_(self.embedding.weight, -1.0 / size, 1.0 / size)

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest entry (squared distance): [..., E] -> int64 [...]."""
        weight = self.embedding.weight
        # |z|^2 is the same for every entry and omitted.
        distances = weight.square().sum(1) - 2.0 * z @ weight.T
        return distances.argmin(-1)


class ImageModel(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, config: ImageModelConfig) -> None:
        """Create the network with random weights."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.codebook_size, config.embedding_size)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embedding_size, 1)
        self.post_quant_conv = nn.Conv2d(config.embedding_size, config.latent_channels, 1)

    def latents(self, frames: Tensor) -> Tensor:
        """Frames [N, 3, H, W] in [-1, 1] -> vectors before quantisation [N, R, C, E]."""
        return self.quant_conv(self.encoder(frames)).permute(0, 2, 3, 1)

    def reconstruct(self, vectors: Tensor) -> Tensor:
        """Vectors [N, R, C, E] -> frames [N, 3, H, W] in about [-1, 1]."""
        return self.decoder(self.post_quant_conv(vectors.permute(0, 3, 1, 2)))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [N, 3, H, W] in [-1, 1] -> codes int64 [N, R, C]."""
        return self.quantize.nearest(self.latents(frames))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [N, R, C] -> frames [N, 3, H, W] in about [-1, 1]."""
        return self.reconstruct(self.quantize.embedding(codes))
