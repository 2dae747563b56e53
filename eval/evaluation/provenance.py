"""What the outcomes of an evaluation depend on, beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.tokens.action import NAMED_RANGES

_SHOWN = 12  # digits of a checksum


@dataclass(frozen=True)
class Provenance:
    """What the outcome of every episode depends on, beside the weights.

    Attributes:
        renderer: Backend and vendor of the renderer.
        reset: How an episode starts: `hard` or `soft`.
        observations: What frames and proprioception show: `recomputed` or `published`.
        versions: Versions of the simulator's packages.
        policy_settings: Cameras, history, chunk, ranges of actions and states, checksums of the tokenizers
            and the decoders that it has, and of several data sets the one that it acts as (`embodiment`);
            None for a policy without them.
        precision: Arithmetic of the policy's network, `fp32` or `bf16`; None for a policy without one.
        decoder: How the policy decided, `discrete` or `continuous`; None for a policy without a network.
        weights: Which weights of a checkpoint the policy had, `trained`, or `averaged` with the decay of the
            average; None for a policy of no checkpoint.
    """

    renderer: str
    reset: str
    observations: str
    versions: dict[str, str]
    policy_settings: Mapping[str, Any] | None
    precision: str | None = None
    decoder: str | None = None
    weights: str | None = None

    def __str__(self) -> str:
        versions = (f"{package} {version}" for package, version in self.versions.items())
        simulator = f"{self.renderer}, {self.reset} resets, observations {self.observations}"
        policy = "" if self.policy_settings is None else _policy_text(self.policy_settings)
        parts = (self.precision, self.decoder, None if self.weights is None else f"{self.weights} weights")
        policy += "".join(f", {part}" for part in parts if part is not None)
        policy = f"{policy}; " if policy else ""
        return f"{policy}{', '.join([simulator, *versions])}"


def _policy_text(settings: Mapping[str, Any]) -> str:
    """Policy settings, as `PolicySettings.acting_json` makes them, in words."""
    ranges = settings["action_ranges"]
    named = {(each.minimum, each.maximum): name for name, each in NAMED_RANGES.items()}
    name = named.get((tuple(ranges["minimum"]), tuple(ranges["maximum"])), "the data set's own")
    embodiment = f"embodiment {settings['embodiment']}, " if "embodiment" in settings else ""
    return (
        f"{embodiment}camera{'s' * (len(settings['cameras']) > 1)} {', '.join(settings['cameras'])}, "
        f"{'state, ' * ('state_ranges' in settings)}history {settings['history']}, "
        f"chunk {settings['chunk']}, {settings['pixels']} px, action ranges {name}, image tokenizer "
        f"{settings['image_tokenizer_sha256'][:_SHOWN]}, text tokenizer "
        f"{settings['text_tokenizer_sha256'][:_SHOWN]}"
    )
