"""`worldvla convert`: published weights and samples in, trained weights out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.config import ConvertExportConfig, ConvertImportConfig
from cluster.cli.invocation import Invocation
from cluster.overrides import model_overrides
from data.config import ConvertSamplesConfig
from data.errors import InputError
from pretrain.telemetry.progress import ProgressBar, ProgressDisplay

if TYPE_CHECKING:
    from data.prepare.published_samples import ConvertedSamples
    from data.stream.source_format import SourceFormat
    from pretrain.model.config import ActionHeadConfig

_MEGABYTE = 1_000_000
_PICKLES = (".ckpt", ".pt", ".pth")


def run_convert_import(config: ConvertImportConfig, invocation: Invocation) -> None:
    """Import published weights, or an image tokenizer, depending on what `source` is.

    Raises:
        InputError: It is neither a folder of weights nor an image tokenizer's file, or does not fit.
    """
    source, out = Path(config.source), Path(config.out)
    if source.is_dir():
        if config.pixels is not None:
            raise InputError(f"pixels={config.pixels}: belongs to image tokenizers, {source} is a folder")
        _import_weights(source, out, config.shard_megabytes, invocation)
    elif source.suffix in _PICKLES and source.is_file():
        _import_image_tokenizer(source, out, config.pixels, invocation)
    else:
        raise InputError(
            f"source={source}: expected a folder with config.json and safetensors files, or Chameleon's "
            "vqgan.ckpt"
        )


def run_convert_samples(config: ConvertSamplesConfig, invocation: Invocation) -> None:
    """Convert published token samples into episode shards.

    Raises:
        InputError: A file is no sample, or does not fit the tokenizers.
    """
    from data.prepare.published_samples import convert_samples
    from data.tokens.image import ImageTokenizer
    from data.tokens.text import TextTokenizer

    text = TextTokenizer.load(config.text_tokenizer)
    image = ImageTokenizer.load(config.image_tokenizer, pixels=config.pixels)
    with ProgressDisplay(invocation.console) as display:
        bar = display.bar("read samples")
        converted = convert_samples(
            config, text, image, lambda done, total: bar.update(done, total, detail="files, each twice")
        )
    index = converted.index
    invocation.console.print(
        f"  {config.out}: {len(index.episodes)} episodes, {int(index.episodes.lengths.sum())} steps, "
        f"camera {', '.join(index.cameras)}; {_states_of(converted)}"
    )


def _states_of(converted: ConvertedSamples) -> str:
    if not converted.has_states:
        return "without states, which samples lack"
    if not converted.repeated_states:
        return "with states"
    return (
        f"with states, except for the last steps of episodes ({converted.repeated_states} in all), which "
        "samples lack: they repeat the last known one; no action sample shows it there with "
        f"data.chunk={converted.least_chunk} or more"
    )


def run_convert_export(config: ConvertExportConfig, invocation: Invocation) -> None:
    """Export a checkpoint as a folder of published weights.

    Raises:
        InputError: No checkpoint there, or settings that do not fit it.
    """
    from pretrain.checkpoint.fetch import local_checkpoint
    from pretrain.convert.exporting import export_weights
    from pretrain.policy_settings import POLICY_FILE

    with ProgressDisplay(invocation.console) as display:
        exported = export_weights(
            local_checkpoint(config.checkpoint),
            Path(config.out),
            config.dtype,
            Path(config.image_tokenizer) if config.image_tokenizer else None,
            _shard_bytes(config.shard_megabytes),
            _in_megabytes(display.bar("export, MB")),
            config.layout,
            config.embodiment,
            config.weights,
        )
    show = invocation.console.print
    show(
        f"  {config.out}: {exported.weights} weights, {exported.tensors - exported.image_tensors} tensors "
        f"({_counts(exported.dtypes)}), {exported.bytes:,} bytes in {exported.files} files"
    )
    _show_action_head(exported.action_head, exported.action_head_tensors, show)
    if exported.norm_rows is not None:
        show(f"  published layout: q/k norms with model_parallel_size={exported.norm_rows} rows")
    if exported.image_tensors:
        show(f"  {exported.image_tensors} more of the image encoder (vqmodel)")
    else:
        show("  without the image encoder (vqmodel); image_tokenizer=FILE adds Chameleon's")
    if (policy := exported.policy) is not None:
        show(
            f"  {POLICY_FILE}: camera {', '.join(policy.cameras)}, history {policy.history}, "
            f"{_chunks(policy.sources)}, image tokenizer {policy.image_tokenizer_sha256[:12]}, "
            f"text tokenizer {policy.text_tokenizer_sha256[:12]}"
        )
    if exported.note:
        show(f"  note: {exported.note}", markup=False)


def _chunks(sources: Sequence[SourceFormat]) -> str:
    """The chunk, of several data sets that of each by name."""
    from pretrain.sources import name_of

    if len(sources) == 1:
        return f"chunk {sources[0].chunk}"
    return f"chunks {', '.join(f'{name_of(source)} {source.chunk}' for source in sources)}"


def _import_weights(source: Path, out: Path, megabytes: int, invocation: Invocation) -> None:
    from pretrain.convert.importing import import_weights

    with ProgressDisplay(invocation.console) as display:
        report = _in_megabytes(display.bar("import, MB"))
        imported = import_weights(source, out, _shard_bytes(megabytes), report)
    show = invocation.console.print
    show(
        f"  {out}: {imported.tensors} tensors ({_counts(imported.dtypes)}), {imported.bytes:,} bytes, "
        f"fingerprint {imported.fingerprint[:12]}"
    )
    _show_action_head(imported.model.action_head, imported.action_head_tensors, show)
    for what, count in imported.left_out.items():
        show(f"  left out: {count} tensors {what}")
    if imported.repeated_norms:
        show(f"  repeated over the heads that share them: {imported.repeated_norms} tensors of q/k norms")
    if imported.other_codes:
        show(
            f"  note: {imported.other_codes} image codes have other ids in its vocabulary_map than here (4 + "
            "the code); the weights are unchanged"
        )
    show(f"  train: checkpointing.start_from={out} {' '.join(model_overrides(imported.model))}")


def _show_action_head(head: ActionHeadConfig | None, tensors: int, show: Callable[[str], None]) -> None:
    if head is not None:
        actions = f"{head.time_horizon} actions of {head.action_dim} numbers"
        show(f"  action head: {tensors} of the tensors, {actions}")


def _import_image_tokenizer(source: Path, out: Path, pixels: int | None, invocation: Invocation) -> None:
    from data.tokens.image_import import import_image_tokenizer

    tokenizer, dropped = import_image_tokenizer(source, out, pixels)
    config, show = tokenizer.config, invocation.console.print
    show(
        f"  {out}: {config.codebook_size} codes, {config.pixels} px as {tokenizer.rows} x "
        f"{tokenizer.columns}, sha256 {tokenizer.sha256[:12]}"
    )
    show(f"  left out: {dropped} tensors of the training loss")
    show(f"  prepare and train: image_tokenizer={out}, data.image_tokenizer={out}", soft_wrap=True)


def _counts(dtypes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(dtypes.items()))


def _shard_bytes(megabytes: int) -> int:
    if megabytes < 1:
        raise InputError(f"shard_megabytes={megabytes}, expected at least 1")
    return megabytes * _MEGABYTE


def _in_megabytes(bar: ProgressBar) -> Callable[[int, int], None]:
    """Progress in bytes, shown in megabytes."""
    return lambda done, total: bar.update(-(-done // _MEGABYTE), -(-total // _MEGABYTE))
