"""The demonstrations of a source, looked through before anything is encoded."""

from __future__ import annotations

from dataclasses import replace

from data.config import PrepareConfig
from data.errors import InputError
from data.sources.bad_demonstrations import allowed_bad, check_bad, check_first, faults
from data.sources.interface import DemonstrationReference, DemonstrationSource


def screened(source: DemonstrationSource, config: PrepareConfig) -> list[DemonstrationReference]:
    """All demonstrations; those that are to be left out have a fault.

    All faults that can be found without decoding frames are found here, and named by one error. A replay
    records its own frames and states: then only the list is looked at.

    Raises:
        InputError: More of them cannot be used than `skip_bad` allows, or none can.
    """
    listed = source.references()
    allowed = allowed_bad(config.skip_bad, len(listed))
    references: list[DemonstrationReference] = []
    for reference in listed if config.replay else source.checked(listed):
        if reference.idle and not config.replay and not reference.fault:
            reference = replace(reference, fault=no_movement(reference.key, reference.length))
        references.append(reference)
        check_first(references, config.skip_bad, config.source)
    bad = faults(references)
    check_bad(bad, allowed, config.source)
    if len(bad) == len(references):
        raise InputError(
            f"{config.source}: none of its {len(bad)} demonstrations can be used, skip_bad cannot help; "
            f"of the first: {next(iter(bad.values()))}"
        )
    return references


def no_movement(key: str, steps: int) -> str:
    """Why a demonstration without any movement cannot be used."""
    return (
        f"{key}: none of its {steps} steps moves the robot, expected at least one; delete this demonstration"
    )
