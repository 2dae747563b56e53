"""The names of cameras, actions and states in a data set: given by a setting, or the usual ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.config import SourceConfig
from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from data.errors import InputError
from data.sources.drawing import draw

# Names in the published LIBERO, Bridge and Open X-Embodiment data sets.
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


@dataclass(frozen=True, slots=True)
class EpisodeCameras:
    """The cameras of a data set, of which the agent's may be drawn for each episode.

    Attributes:
        names: Our camera -> its name; the agent's is the first one where it is drawn.
        drawn: Names of which the agent's is drawn; empty: it is always the same.
        seed: The setting `draw_seed`.
    """

    names: Mapping[str, str]
    drawn: Sequence[str]
    seed: int

    @classmethod
    def choose(cls, available: Sequence[str], config: SourceConfig, where: str) -> EpisodeCameras:
        """Choose among the cameras of a data set (InputError: as `choose_cameras`)."""
        drawn = config.draw_camera
        for name in drawn:
            choose_cameras(available, {AGENT_CAMERA: name}, where)
        requested = config.cameras.requested() | ({AGENT_CAMERA: drawn[0]} if drawn else {})
        return cls(choose_cameras(available, requested, where), drawn, config.draw_seed)

    def of(self, key: str) -> dict[str, str]:
        """Our camera -> its name in the episode with this key."""
        chosen = {AGENT_CAMERA: draw(self.drawn, self.seed, "camera", key)} if self.drawn else {}
        return {**self.names, **chosen}


def choose_cameras(available: Sequence[str], requested: Mapping[str, str], where: str) -> dict[str, str]:
    """Map our cameras to the names in a data set.

    Args:
        available: Names of all cameras of the data set.
        requested: The setting `cameras`; empty: the usual names, or the only camera.
        where: Leads the messages.

    Raises:
        InputError: A requested camera is missing, or the agent's view is ambiguous.
    """
    if requested:
        for camera, name in requested.items():
            if name not in available:
                raise InputError(
                    f"{where}: no camera {name!r} for {camera}, the data set has {_listed(available)}; "
                    "name one of these in cameras={...}"
                )
        return dict(requested)
    chosen: dict[str, str] = {}
    for camera, names in _USUAL_CAMERAS.items():
        candidates = [f"{prefix}{name}" for name in names for prefix in _PREFIXES]
        match = next((name for name in candidates if name in available), None)
        if match is not None:
            chosen[camera] = match
    if AGENT_CAMERA not in chosen and len(available) == 1:
        return {AGENT_CAMERA: available[0]}
    if AGENT_CAMERA not in chosen:
        example = available[0] if available else "NAME"
        raise InputError(
            f"{where}: cannot identify the third-person camera among {_listed(available)}; name it, "
            f"for example cameras={{agent:{example}}}"
        )
    return chosen


def choose_name(
    available: Sequence[str], requested: str | None, usual: Sequence[str], setting: str, where: str
) -> str:
    """The name given by a setting, else the first usual one in the data set.

    Raises:
        InputError: The data set has none of them.
    """
    candidates = usual if requested is None else (requested,)
    for name in candidates:
        if name in available:
            return name
    raise InputError(
        f"{where}: no {' or '.join(candidates)} among {_listed(available)}; name the right one with {setting}"
    )


def choose_parts(
    available: Sequence[str], requested: Sequence[str] | None, usual: Sequence[str], setting: str, where: str
) -> list[str]:
    """The names given by a setting that takes several (`action`, `state`), else the first usual one.

    Raises:
        InputError: The data set lacks one of them, or the action has none.
    """
    if requested is not None and not requested and setting == "action":
        raise InputError("action=[] names no part of the action; leave the setting out, or name its parts")
    remedy = f"{setting}=NAME" if setting == "action" else f"{setting}=[NAME]"
    remedy += f", several parts with {setting}=[NAME,NAME]" + (", none with state=[]" * (setting == "state"))
    if requested is None:
        return [choose_name(available, None, usual, remedy, where)]
    return [choose_name(available, name, (), remedy, where) for name in requested]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:20]) or "no names at all"
