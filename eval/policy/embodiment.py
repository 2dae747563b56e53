"""Which of the data sets that a network was trained on its policy acts as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError
from data.stream.source_format import SourceFormat
from eval.simulator.interface import EMBODIMENT
from pretrain.sources import listed, name_of, numbers_of

_OWN_ROBOT = "act on their own robot with `worldvla serve`"


def suite_source(
    where: str, sources: Sequence[SourceFormat], name: str | None, setting: str = "embodiment"
) -> SourceFormat:
    """The source that a policy acts as in a simulator: the named one, or the only one that fits.

    Args:
        where: The checkpoint or the data, for messages.
        sources: Those of the training.
        name: The setting.
        setting: Its name, for messages.

    Raises:
        InputError: There is no such source, it does not fit, or without a name none or several fit; lists
            them with their numbers.
    """
    expected = f"the simulators take {_taken(sources)}"
    if name is not None:
        source = _named(where, sources, name, setting)
        if not _fits(source):
            raise InputError(f"{setting}={name}: {where} has {numbers_of(source)}; {expected}; {_OWN_ROBOT}")
        return source
    fitting = [source for source in sources if _fits(source)]
    if not fitting:
        raise InputError(f"{where}: was trained on {listed(sources)}; {expected}; {_OWN_ROBOT}")
    if len(fitting) > 1:
        raise InputError(
            f"{where}: several data sets fit the suite: {listed(fitting)}; choose one by {setting}=NAME"
        )
    return fitting[0]


def robot_source(where: str, sources: Sequence[SourceFormat], name: str | None) -> SourceFormat:
    """The source that a policy acts as on a robot: the named one, or the only one; see `suite_source`.

    Raises:
        InputError: There is no such source, or without a name several.
    """
    if name is not None:
        return _named(where, sources, name, "embodiment")
    if len(sources) > 1:
        raise InputError(
            f"{where}: was trained on several data sets: {listed(sources)}; choose one by embodiment=NAME"
        )
    return sources[0]


def acting_source(
    checkpoint: Path, sources: Sequence[SourceFormat], name: str | None, in_simulator: bool
) -> SourceFormat:
    """The source that a checkpoint's policy acts as; see `suite_source` and `robot_source`."""
    where = f"checkpoint={checkpoint}"
    return suite_source(where, sources, name) if in_simulator else robot_source(where, sources, name)


def _named(where: str, sources: Sequence[SourceFormat], name: str, setting: str) -> SourceFormat:
    for source in sources:
        if name_of(source) == name:
            return source
    raise InputError(
        f"{setting}={name}: {where} was trained on {listed(sources)}; give one of these names, or none"
    )


def _fits(source: SourceFormat) -> bool:
    """Whether the simulators take its actions and show its states, number by number."""
    robot = source.embodiment
    return robot.action == EMBODIMENT.action and (not source.state_dim or robot.state == EMBODIMENT.state)


def _taken(sources: Sequence[SourceFormat]) -> str:
    states = any(source.state_dim for source in sources)
    return numbers_of(SourceFormat(embodiment=EMBODIMENT)) + (
        f", and show a state of {EMBODIMENT.state_dim}: {', '.join(EMBODIMENT.state)}" if states else ""
    )
