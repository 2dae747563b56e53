"""The data set and the episodes that a world model is rolled out on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.config import DataConfig
from data.errors import InputError
from data.storage.episode_entry import EpisodeEntry
from data.storage.index import INDEX_FILE, DatasetIndex
from data.stream.source_format import SourceFormat
from eval.policy.loaded_model import LoadedModel
from pretrain.sources import listed

_UNSET = ("", "???")
_OTHER_DATA = (
    "the data set is not the one that the checkpoint was trained on: what is held out there may have been "
    "trained on"
)


class DatasetChoice(NamedTuple):
    """A data set, and caveats for scores on it."""

    index: DatasetIndex
    notes: tuple[str, ...]


def open_dataset(model: LoadedModel, url: str | None) -> DatasetChoice:
    """Open a data set that was made for the model: with its image tokenizer, action ranges and cameras.

    Args:
        model: The model.
        url: Folder or URL; None: the one that its run names, of several the first.

    Raises:
        InputError: No data set there, or one that was made for other models.
    """
    index = _load(model.data, url)
    remedy = "point data.url at the data set that the run was trained on"
    if index.image.tokenizer_sha256 != model.settings.image_tokenizer_sha256:
        raise InputError(
            f"{index.url}: encoded with the image tokenizer {index.image.tokenizer_sha256[:12]}, the run has "
            f"{model.settings.image_tokenizer_sha256[:12]}; {remedy}"
        )
    if index.image.pixels != model.image.pixels:
        raise InputError(
            f"{index.url}: frames of {index.image.pixels} px, the run has {model.image.pixels}; {remedy}"
        )
    _check_actions(index, model.settings.sources, remedy)
    for camera in model.settings.cameras:
        if camera not in index.cameras:
            raise InputError(
                f"{index.url}: no camera {camera!r}, only {', '.join(index.cameras)}; the run has "
                f"{', '.join(model.settings.cameras)}; {remedy}"
            )
    is_other = model.dataset is not None and not model.data.sources and model.dataset != index.fingerprint
    return DatasetChoice(index, (_OTHER_DATA,) if is_other else ())


def choose_episodes(
    index: DatasetIndex, key: str | None, count: int = 1, fewest: int = 2
) -> list[EpisodeEntry]:
    """The episode with that key; without one the first of `val_ind`, then of `val_ood`.

    Without any held-out episode it is the last of all.

    Args:
        index: The data set.
        key: Key of an episode; None: held-out ones.
        count: Largest number of episodes.
        fewest: Time steps of the shortest episode that is taken.

    Raises:
        InputError: No episode has the key, or all are shorter.
    """
    if key is not None:
        entries = [entry for entry in index.episodes if entry.key == key]
        if not entries:
            examples = ", ".join(entry.key for entry in index.episodes[:3])
            raise InputError(
                f"episode={key}: not in {index.url}; it holds {len(index.episodes)}: {examples}, ..."
            )
    else:
        entries = [*index.split("val_ind"), *index.split("val_ood")] or list(index.episodes[-1:])
    long = [entry for entry in entries if entry.length >= fewest]
    if not long:
        raise InputError(
            f"episode {entries[0].key} has length {entries[0].length}, expected at least {fewest} time "
            "steps; choose another episode"
        )
    return long[:count]


def _check_actions(index: DatasetIndex, sources: Sequence[SourceFormat], remedy: str) -> None:
    """Refuse actions that are not those of any data set of the training, or over other ranges."""
    action = index.embodiment.action
    alike = [source for source in sources if source.embodiment.action == action]
    if not alike:
        raise InputError(
            f"{index.url}: action of {len(action)}: {', '.join(action)}; the run was trained on "
            f"{listed(sources)}; {remedy}"
        )
    if all(source.action_ranges != index.action_ranges for source in alike):
        raise InputError(f"{index.url}: other action ranges than the run's action_ranges.json; {remedy}")


def _load(data: DataConfig, given: str | None) -> DatasetIndex:
    url = given or (data.url if data.url not in _UNSET else next((each.url for each in data.sources), ""))
    if "://" in url or (Path(url) / INDEX_FILE).is_file():
        return DatasetIndex.load(url)
    relative = "" if Path(url).is_absolute() else f", relative to the present folder {Path.cwd()}"
    if given is not None:
        raise InputError(
            f"data.url={url}: no {INDEX_FILE} there{relative}; give the data set's folder or URL"
        )
    remedy = "give data.url=FOLDER, where the data set is now"
    if relative:
        remedy = f"call it from the folder that the training was called from, or {remedy}"
    raise InputError(f"{url}: no {INDEX_FILE} there (data.url of the run{relative}); {remedy}")
