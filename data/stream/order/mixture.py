"""Number of samples of each data set and kind in a step: exact, and the same in every step."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data.config import MixtureConfig
from data.errors import InputError

_FINEST = 1_000_000  # 0.3 : 0.7 means 3 : 7, not the neighbouring binary fractions


def action_share(mixture: MixtureConfig) -> Fraction:
    """Share of action samples among all.

    Raises:
        InputError: A weight is negative or not finite, or both are 0.
    """
    weights = (mixture.action, mixture.world)
    if not all(np.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise InputError(
            f"mixture weights are action={mixture.action} world={mixture.world}, expected finite numbers "
            "of at least 0, one of them above 0"
        )
    action, world = (Fraction(w).limit_denominator(_FINEST) for w in weights)
    return action / (action + world) if action + world else Fraction(1, 2)


def dataset_shares(weights: Sequence[float]) -> list[Fraction]:
    """Share of each data set among all samples.

    Raises:
        InputError: A weight is not a finite number above 0.
    """
    for number, weight in enumerate(weights):
        if not np.isfinite(weight) or Fraction(weight).limit_denominator(_FINEST) <= 0:
            raise InputError(
                f"data.sources[{number}].weight is {weight}, expected a finite number above 0; leave a data "
                "set out that is not to be used"
            )
    exact = [Fraction(weight).limit_denominator(_FINEST) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def apportion(total: int, shares: Sequence[Fraction | int]) -> list[int]:
    """Divide `total` in proportion to `shares`: whole numbers, by the largest remainder.

    Of equal remainders the earlier share goes first.
    """
    whole = sum(Fraction(share) for share in shares)
    quotas = [Fraction(share) * total / whole for share in shares]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def step_counts(actions: int, worlds: int, shares: Sequence[Fraction]) -> NDArray[np.int64]:
    """Samples of each data set (row) and kind (action, world) in a step, int64 [data sets, 2].

    Each data set's total is the largest-remainder share of all samples, and within it the kinds are as
    near as whole numbers allow to their shares; the columns add up to `actions` and `worlds` exactly.
    """
    totals = apportion(actions + worlds, shares)
    of_action = apportion(actions, totals) if actions else [0] * len(totals)
    return np.array([(a, total - a) for a, total in zip(of_action, totals, strict=True)], np.int64)
