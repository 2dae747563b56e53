"""Which embodiments an export says its weights act as."""

from __future__ import annotations

from pathlib import Path

from data.errors import InputError
from pretrain.config import WeightsLayout
from pretrain.model.config import ActionHeadConfig
from pretrain.policy_settings import PolicySettings
from pretrain.sources import listed, name_of


def exported_policy(
    checkpoint: Path,
    policy: PolicySettings | None,
    head: ActionHeadConfig | None,
    layout: WeightsLayout,
    embodiment: str | None,
) -> PolicySettings | None:
    """The settings that are written beside exported weights.

    Args:
        checkpoint: What is exported, for errors.
        policy: The settings of its training, of all data sets; None: not known.
        head: Its action head; None: it has none.
        layout: Of the folder.
        embodiment: Name of the data set that they are to be of alone; None: all.

    Raises:
        InputError: There is no such data set; several for the published class, which knows one embodiment; or
            one of which the action head predicts more than its own chunk.
    """
    if embodiment is None and (policy is None or len(policy.sources) == 1):
        return policy
    sources = () if policy is None else policy.sources
    if embodiment is None:
        if layout != "published":
            return policy
        raise InputError(
            f"layout=published: its class knows one embodiment, {checkpoint} was trained on "
            f"{listed(sources)}; choose one by embodiment=NAME, or give layout=transformers"
        )
    chosen = next((source for source in sources if name_of(source) == embodiment), None)
    if policy is None or chosen is None:
        found = listed(sources) or "data that it does not name"
        raise InputError(
            f"embodiment={embodiment}: {checkpoint} was trained on {found}; give one of these names, or none"
        )
    needed = chosen.chunk, chosen.embodiment.action_dim
    if head is not None and (head.time_horizon, head.action_dim) != needed:
        raise InputError(
            f"embodiment={embodiment}: the action head of {checkpoint} predicts {head.time_horizon} actions "
            f"of {head.action_dim} numbers, {embodiment} has {needed[0]} of {needed[1]}; export all "
            "embodiments (layout=transformers without embodiment)"
        )
    return policy.acting_as(chosen)
