"""Typed settings from YAML and the command line, strictly checked; the only module that imports Hydra.

`configs/train.yaml` names the groups; a group file holds differences from the defaults in the dataclasses.
An unknown key is refused, and the nearest known one is named. A recipe (`recipe=NAME`, of commands that read
demonstrations) changes the defaults before anything else is composed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.config import PrepareConfig, SourceConfig
from data.errors import InputError, first_line
from data.unicode_text import is_encodable
from pretrain.installation import project_file
from pretrain.literal_values import as_typed
from pretrain.model.config import ModelConfig
from pretrain.recipes import checksum, recipe_file, requested_recipe
from pretrain.setting_errors import available, explain, keys, nearest
from pretrain.setting_types import (
    build,
    field_of,
    field_types,
    listed_section,
    listed_type,
    plain,
    section,
    structured,
    text_or_section,
)

CONFIG_FOLDER = project_file("configs")
_SCHEMA = "schema"  # the name by which configs/train.yaml refers to the dataclass
_ABBREVIATIONS = {"profile": "telemetry.profile"}  # of keys, on the command line

# Without the groups of its own (logging, launcher, help), which Hydra else reads at each composition.
ConfigStore.instance().store("config", HydraConf(defaults=[]), group="hydra", provider="hydra")

T = TypeVar("T")


def compose(schema_name: str, schema: type[T], config_name: str | None, overrides: Sequence[str]) -> T:
    """Compose the settings of one command.

    Args:
        schema_name: Name of these settings in errors, for example the command's name.
        schema: Dataclass with every key, its type and its default.
        config_name: Primary file in `configs/` (`"train"`); None: the dataclass alone.
        overrides: `key=value` of the command line, in Hydra's syntax (`optim.lr=1e-4`, `model=tiny`); texts
            as they were typed (`pretrain.literal_values`).

    Raises:
        InputError: Unknown key or group file, wrong type, a value that is none of the allowed ones, malformed
            override, or a required value is missing.
    """
    overrides = [_in_full(override, schema) for override in overrides]
    for override in overrides:
        if override.startswith(("+", "~")):
            raise InputError(
                f"{schema_name}: {override!r}: settings are changed, not added or removed; write key=value"
            )
        if not is_encodable(override):
            raise InputError(
                f"{schema_name}: {override!r} is no UTF-8 text (a name in another encoding); rename the file "
                "or folder"
            )
    _check_null_sections(schema_name, schema, overrides)
    defaults, overrides = _with_recipe(schema_name, schema, overrides)
    overrides = [as_typed(override, schema) for override in overrides]
    ConfigStore.instance().store(_SCHEMA, _with_sections(defaults, schema, overrides))
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            composed = hydra_compose(config_name or _SCHEMA, overrides)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise explain(schema_name, schema, error, CONFIG_FOLDER) from error
    return _typed(schema_name, schema, composed)


def from_mapping(schema_name: str, schema: type[T], values: Mapping[str, Any]) -> T:
    """Make typed settings of a plain mapping, as strictly as `compose`; missing keys get their defaults."""
    try:
        merged = OmegaConf.merge(_defaults(schema), OmegaConf.create(dict(values)))
    except OmegaConfBaseException as error:
        raise explain(schema_name, schema, error, CONFIG_FOLDER) from error
    return _typed(schema_name, schema, merged)


def to_mapping(settings: object) -> dict[str, Any]:
    """Typed settings as plain nested dictionaries and lists (JSON and YAML can hold them)."""
    return plain(settings)


def to_yaml(settings: object) -> str:
    """Typed settings as YAML, every value written out."""
    return OmegaConf.to_yaml(OmegaConf.create(to_mapping(settings)))


def named_models() -> dict[str, ModelConfig]:
    """The networks of `configs/model` by name, sorted."""
    files = sorted((CONFIG_FOLDER / "model").glob("*.yaml"))
    return {path.stem: from_mapping(f"model {path.stem}", ModelConfig, read_yaml(path)) for path in files}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping from a file.

    Raises:
        InputError: The file is missing or unreadable, or holds no mapping.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"{path}: cannot read settings ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a mapping of settings")
    return cast(dict[str, Any], content)


@functools.cache
def _defaults(schema: type) -> DictConfig:
    """A schema as OmegaConf reads it, every default filled in; Hydra and `merge` change copies of it."""
    return OmegaConf.structured(structured(schema))


def _with_recipe(
    schema_name: str, schema: type, overrides: Sequence[str]
) -> tuple[DictConfig, Sequence[str]]:
    """The defaults of a schema, with those of a recipe where one is named; and the other words.

    A recipe holds settings of `worldvla prepare`; another command takes those that it has. (Hydra itself
    would take `recipe=NAME` for the choice of a file in a group.)
    """
    defaults = _defaults(schema)
    if not issubclass(schema, SourceConfig):
        return defaults, overrides
    name, others = requested_recipe(overrides)
    if name is None:
        return defaults, others
    path = recipe_file(name, CONFIG_FOLDER / "recipe")
    if path is None:
        choice = f"recipe/{name}"
        raise InputError(f"{schema_name}: no file configs/{choice}.yaml{available(choice, CONFIG_FOLDER)}")
    found = read_yaml(path)
    if "recipe" in found:
        raise InputError(f"{path}: names another recipe, expected settings of `worldvla prepare`; copy them")
    where = f"{schema_name} (recipe {name})"
    hints = field_types(PrepareConfig)
    found = {key: _of_recipe(f"{where}: {key}", value, hints.get(key)) for key, value in found.items()}
    from_mapping(where, PrepareConfig, {"source": "", "out": ""} | found)
    values = {key: value for key, value in found.items() if key in field_types(schema)}
    set_anew = {word.partition("=")[0].partition(".")[0] for word in others}
    values |= {
        "recipe": name,
        "recipe_sha256": checksum(path),
        "recipe_changed": sorted(set_anew & set(found)),
    }
    return cast(DictConfig, OmegaConf.merge(defaults, OmegaConf.create(values))), others


def _of_recipe(where: str, value: Any, hint: Any) -> Any:
    """A value as the command line takes it: one text for a list of texts is a list of one.

    Raises:
        InputError: Something else stands in place of a list or of a section; `where` leads the message.
    """
    member, inner = listed_type(hint), section(hint)
    if inner is not None and not isinstance(value, dict | None):
        raise InputError(f"{where} is {value!r}, expected a mapping of its parts: {_listed(inner)}")
    if member is None or isinstance(value, list | None):
        return value
    if isinstance(value, str) and (member is str or text_or_section(member) is not None):
        return [value]
    raise InputError(f"{where} is {value!r}, expected a list; write it in brackets [...]")


def _check_null_sections(schema_name: str, schema: type, overrides: Sequence[str]) -> None:
    for null in overrides:
        key, _, value = null.partition("=")
        found = field_of(schema, key)
        if value.strip().lower() != "null" or found is None or section(found[1]) is None:
            continue
        if part := next((each for each in overrides if each.startswith(f"{key}.")), None):
            raise InputError(f"{schema_name}: {null}, and {part} sets a part of it; leave one out")


def _with_sections(defaults: DictConfig, schema: type, overrides: Sequence[str]) -> DictConfig:
    """The defaults, where a section that is null by default has its own once an override sets part of it.

    OmegaConf cannot merge a value of the command line into null.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        parts = key.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            found = field_of(schema, name)
            is_section = found is not None and section(found[1]) is not None
            if is_section and OmegaConf.select(defaults, name) is None and value.strip().lower() != "null":
                filled: Any = functools.reduce(lambda inner, part: {part: inner}, reversed(parts[:end]), {})
                defaults = cast(DictConfig, OmegaConf.merge(defaults, filled))
    return defaults


def _in_full(override: str, schema: type) -> str:
    """An override with its key in full: `profile=true` is `telemetry.profile=true` where there is one."""
    key, separator, value = override.partition("=")
    if key not in _ABBREVIATIONS or _ABBREVIATIONS[key] not in keys(schema):
        return override
    return f"{_ABBREVIATIONS[key]}{separator}{value}"


def _typed(schema_name: str, schema: type[T], composed: Any) -> T:
    unknown = set(composed) - {field.name for field in fields(cast(Any, schema))}
    if unknown:
        key = sorted(map(str, unknown))[0]
        raise InputError(f"{schema_name}: unknown setting {key!r}{nearest(key, list(keys(schema)))}")
    try:
        OmegaConf.resolve(composed)
        _clear_alternatives(schema, composed)
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            listed = " ".join(f"{key}=..." for key in missing)
            raise InputError(f"{schema_name}: no value for {', '.join(missing)}; add {listed}")
        values = _with_entries(schema_name, schema, cast(Any, OmegaConf.to_container(composed)), "")
    except OmegaConfBaseException as error:
        raise explain(schema_name, schema, error, CONFIG_FOLDER) from error
    try:
        return build(schema, values)
    except InputError as error:
        raise InputError(f"{schema_name}: {error}") from None


def _with_entries(schema_name: str, schema: type, values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Check the members of lists of texts or sections, and fill in the defaults of the sections."""
    filled = dict(values)
    for name, hint in field_types(schema).items():
        inner = listed_section(hint)
        if inner is not None and filled[name] is not None:
            filled[name] = [
                _entry(schema_name, inner, each, f"{prefix}{name}[{number}]")
                for number, each in enumerate(filled[name])
            ]
    return filled


def _entry(schema_name: str, schema: type, value: Any, key: str) -> Any:
    """A text as it is, or a mapping as the values of a section."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise InputError(
            f"{schema_name}: {key} is {value!r}, expected a name, or its settings: {_listed(schema)}"
        )
    try:
        merged = cast(DictConfig, OmegaConf.merge(_defaults(schema), OmegaConf.create(value)))
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise InputError(
                f"{schema_name}: no value for {key}.{missing[0]}; its settings: {_listed(schema)}"
            )
        values = cast(dict[str, Any], OmegaConf.to_container(merged))
    except OmegaConfBaseException as error:
        raise explain(f"{schema_name}: {key}", schema, error, CONFIG_FOLDER) from error
    return _with_entries(schema_name, schema, values, f"{key}.")


def _listed(schema: type) -> str:
    return ", ".join(keys(schema))


def _clear_alternatives(schema: type, composed: Any) -> None:
    """Set a missing field with metadata `{"or": other}` to an empty string where `other` is given."""
    hints = field_types(schema)
    for field in fields(schema):
        inner, other = hints[field.name], field.metadata.get("or")
        if isinstance(inner, type) and is_dataclass(inner):
            _clear_alternatives(inner, composed[field.name])
        elif other is not None and OmegaConf.is_missing(composed, field.name) and composed[other]:
            composed[field.name] = ""
