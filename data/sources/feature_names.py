"""Which of a data set's own names are our cameras, actions and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from data.errors import InputError

# As the published LIBERO, Bridge and Open X-Embodiment sets call them.
_USUAL_CAMERAS = {
    AGENT_CAMERA: (
        "image",
        "agentview",
        "agentview_rgb",
        "agent",
        "image_0",
        "front",
        "exterior_image_1_left",
    ),
    WRIST_CAMERA: ("wrist_image", "image2", "wrist", "eye_in_hand_rgb", "wrist_image_left", "hand_image"),
}
_PREFIXES = ("observation.images.", "observation.", "observation/", "")


def choose_cameras(found: Sequence[str], wanted: Mapping[str, str], where: str) -> dict[str, str]:
    """Our camera -> the data set's name of it.

    Args:
        found: Names of all cameras of the data set.
        wanted: The setting `cameras`; none: usual names, or the only camera there is.
        where: Leads the messages.

    Raises:
        InputError: A wanted camera is not there, or the agent's view cannot be told.
    """
    if wanted:
        for camera, name in wanted.items():
            if name not in found:
                raise InputError(
                    f"{where}: no camera {name!r} for {camera}, the data set has {_listed(found)}; "
                    "name one of these in cameras={...}"
                )
        return dict(wanted)
    chosen: dict[str, str] = {}
    for camera, names in _USUAL_CAMERAS.items():
        candidates = [f"{prefix}{name}" for name in names for prefix in _PREFIXES]
        match = next((name for name in candidates if name in found), None)
        if match is not None:
            chosen[camera] = match
    if AGENT_CAMERA not in chosen and len(found) == 1:
        return {AGENT_CAMERA: found[0]}
    if AGENT_CAMERA not in chosen:
        example = found[0] if found else "NAME"
        raise InputError(
            f"{where}: cannot tell the third-person camera among {_listed(found)}; name it, for example "
            f"cameras={{agent:{example}}}"
        )
    return chosen


def choose_name(
    found: Sequence[str], wanted: str | None, usual: Sequence[str], setting: str, where: str
) -> str:
    """The name given by a setting, else the first usual one that the data set has.

    Raises:
        InputError: The data set does not have it.
    """
    candidates = usual if wanted is None else (wanted,)
    for name in candidates:
        if name in found:
            return name
    raise InputError(
        f"{where}: no {' or '.join(candidates)} among {_listed(found)}; name the right one with {setting}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:20]) or "no names at all"
