"""`worldvla convert`: published weights in, trained weights out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.config import ConvertExportConfig, ConvertImportConfig
from cluster.console import Bar, Board
from cluster.invocation import Invocation
from data.config import ConvertSamplesConfig
from data.errors import InputError

if TYPE_CHECKING:
    from pretrain.model.config import ModelConfig

MEGABYTE = 1_000_000
PICKLES = (".ckpt", ".pt", ".pth")
NETWORK = (
    "vocabulary_size",
    "hidden_size",
    "ffn_size",
    "layers",
    "heads",
    "key_value_heads",
    "swin_norm",
    "max_positions",
    "rope_theta",
    "norm_eps",
)


def convert_import(config: ConvertImportConfig, call: Invocation) -> None:
    """`worldvla convert import`: what `source` is decides what is made of it.

    Raises:
        InputError: It is neither a folder of weights nor an image tokenizer's file, or does not fit.
    """
    source, out = Path(config.source), Path(config.out)
    if source.is_dir():
        if config.pixels is not None:
            raise InputError(f"pixels={config.pixels}: belongs to image tokenizers, {source} is a folder")
        _import_weights(source, out, config.shard_megabytes, call)
    elif source.suffix in PICKLES and source.is_file():
        _import_image_tokenizer(source, out, config.pixels, call)
    else:
        raise InputError(
            f"source={source}: expected a folder with config.json and safetensors files, or Chameleon's "
            "vqgan.ckpt"
        )


def convert_samples(config: ConvertSamplesConfig, call: Invocation) -> None:
    """`worldvla convert samples`: published token samples as episode shards.

    Raises:
        InputError: A file is no sample, or does not fit the tokenizers.
    """
    from data.prepare import published
    from data.tokens.image import ImageTokenizer
    from data.tokens.text import TextTokenizer

    text = TextTokenizer.load(config.text_tokenizer)
    image = ImageTokenizer.load(config.image_tokenizer, pixels=config.pixels)
    with Board(call.console) as board:
        bar = board.bar("read samples")
        index = published.convert_samples(
            config, text, image, lambda done, total: bar.update(done, total, note="files, each twice")
        )
    steps = int(index.episodes.lengths.sum())
    call.console.print(
        f"  {config.out}: {len(index.episodes)} episodes, {steps} steps; without states, which samples lack"
    )


def convert_export(config: ConvertExportConfig, call: Invocation) -> None:
    """`worldvla convert export`: a checkpoint as a folder that transformers loads.

    Raises:
        InputError: No checkpoint there, or settings that do not fit it.
    """
    from pretrain.checkpoint.fetch import local_checkpoint
    from pretrain.convert.exporting import export_weights

    image = Path(config.image_tokenizer) if config.image_tokenizer else None
    with Board(call.console) as board:
        done = export_weights(
            local_checkpoint(config.checkpoint),
            Path(config.out),
            config.dtype,
            image,
            _shard_bytes(config.shard_megabytes),
            _megabytes(board.bar("export, MB")),
        )
    call.console.print(
        f"  {config.out}: {done.tensors - done.image_tensors} tensors ({_counted(done.dtypes)}), "
        f"{done.bytes:,} bytes in {done.files} files"
    )
    if done.image_tensors:
        call.console.print(f"  {done.image_tensors} more of the image encoder (vqmodel)")
    else:
        call.console.print("  without the image encoder (vqmodel); image_tokenizer=FILE adds Chameleon's")


def _import_weights(source: Path, out: Path, megabytes: int, call: Invocation) -> None:
    from pretrain.convert.importing import import_weights

    with Board(call.console) as board:
        report = _megabytes(board.bar("import, MB"))
        done = import_weights(source, out, _shard_bytes(megabytes), report)
    call.console.print(
        f"  {out}: {done.tensors} tensors ({_counted(done.dtypes)}), {done.bytes:,} bytes, "
        f"fingerprint {done.fingerprint[:12]}"
    )
    for what, count in done.left_out.items():
        call.console.print(f"  left out: {count} tensors {what}")
    if done.other_codes:
        call.console.print(
            f"  note: {done.other_codes} image codes have other ids in its vocabulary_map than here (4 + the "
            "code); the weights are as they were"
        )
    call.console.print(f"  train: checkpointing.start_from={out} {_overrides(done.model)}")


def _import_image_tokenizer(source: Path, out: Path, pixels: int | None, call: Invocation) -> None:
    from data.tokens.image_import import import_image_tokenizer

    tokenizer, dropped = import_image_tokenizer(source, out, pixels)
    config = tokenizer.config
    call.console.print(
        f"  {out}: {config.codebook_size} codes, {config.pixels} px as {tokenizer.rows} x "
        f"{tokenizer.columns}, sha256 {tokenizer.sha256[:12]}"
    )
    call.console.print(f"  left out: {dropped} tensors of the training loss")
    call.console.print(
        f"  prepare and train: image_tokenizer={out}, data.image_tokenizer={out}", soft_wrap=True
    )


def _overrides(model: ModelConfig) -> str:
    """The settings of the network on the command line: the nearest `model=`, and what differs from it."""
    from pretrain.settings import named_models

    found: list[list[str]] = []
    for model_name, named in named_models().items():
        changed = {
            name: getattr(model, name) for name in NETWORK if getattr(model, name) != getattr(named, name)
        }
        words = [f"model.{name}={_written(value)}" for name, value in changed.items()]
        found.append([f"model={model_name}", *words])
    return " ".join(min(found, key=len))


def _written(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _counted(dtypes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(dtypes.items()))


def _shard_bytes(megabytes: int) -> int:
    if megabytes < 1:
        raise InputError(f"shard_megabytes={megabytes}, expected at least 1")
    return megabytes * MEGABYTE


def _megabytes(bar: Bar) -> Callable[[int, int], None]:
    return lambda done, total: bar.update(-(-done // MEGABYTE), -(-total // MEGABYTE))
