"""Which settings may differ between two starts of one run, and changes of the others that a user asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import InputError
from pretrain.setting_errors import nearest

# These change where and how fast a run runs, not its result. Data may move: checkpoints hold its checksum.
_MAY_DIFFER = (
    "run.",
    "parallel.",
    "checkpointing.",
    "data.url",
    "data.cache.",
    "data.retry_seconds",
    "data.memory_megabytes",
    "data.prefetch",
    "data.readers",
    "eval.",
    "cluster.",
    "telemetry.",
    "validation.",
    "guard.step_timeout",
    "demo.",
    "trainer.stop_after",
    "trainer.log_every",
    "trainer.allocator",
    "trainer.micro_batch",
    "model.recompute",
    "model.recompute_layers",
    "model.attention",
    "model.compile",
)
_COMPARED_ELSEWHERE = ("data.shuffle",)  # what it means for the data is compared with the checkpoint
_DIFFERENCES_SHOWN = 3

Changes = Mapping[str, tuple[Any, Any]]
"""Full names of settings, with the values before and now."""


def setting_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None
) -> Changes:
    """The changes of settings that define a run's result; each has to be in `run.change`.

    Args:
        before: Settings of the run's last start.
        now: Those of this one.
        where: Leads the messages.
        defaults: Values of settings that `before`, which an earlier version may have written, does not have.

    Raises:
        InputError: A setting differs that `run.change` does not name, or it names one that does not exist.
    """
    old, new = _flat(defaults or {}) | _flat(before), _flat(now)
    allowed: Sequence[str] = now.get("run", {}).get("change") or ()
    for name in allowed:
        if not any(covers([name], key) for key in new):
            raise InputError(f"run.change: there is no setting {name!r}{nearest(name, sorted(new))}")
    changes = {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if not key.startswith(_MAY_DIFFER) and key not in _COMPARED_ELSEWHERE and old.get(key) != new.get(key)
    }
    refused = [key for key in changes if not covers(allowed, key)]
    if refused:
        shown = "; ".join(
            f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in refused[:_DIFFERENCES_SHOWN]
        )
        more = len(refused) - _DIFFERENCES_SHOWN
        raise InputError(
            f"{where}: is the folder of a run with other settings ({shown}"
            f"{f'; and {more} more' if more > 0 else ''}); choose another run.name, give the same settings, "
            f"or change them for the rest of this run by run.change='[{','.join([*allowed, *refused])}]'"
        )
    return changes


def data_moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the data sets are at another place than at the run's last start."""
    return _places(before) != _places(now)


def covers(names: Sequence[str], key: str) -> bool:
    """Whether a setting is among the names, or in a section that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _places(settings: Mapping[str, Any]) -> list[Any]:
    data = settings.get("data") or {}
    return [data.get("url"), *(source.get("url") for source in data.get("sources") or ())]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; of several data sets only the weights and chunks.

    Earlier versions wrote a weight of 1 where none was given.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif name == "data.sources":
            flat[name] = [_of_source(source) for source in value or ()]
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _of_source(source: Mapping[str, Any]) -> Any:
    weight, chunk = source.get("weight"), source.get("chunk")
    weight = 1.0 if weight is None else weight
    return weight if chunk is None else {"weight": weight, "chunk": chunk}
