"""The verdict on an evaluation in one line: success, error against the expert, entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.report.action_data import OpenLoop, RolloutActions
from eval.report.evaluation_tables import evaluation_row, success_rate_of
from eval.report.evaluations import EvaluationRecord, decoder_of

GOOD_FROM, BAD_BELOW = 0.8, 0.5  # success rates
_MOST = math.log(256)  # nats: all bins of an action token are alike


@dataclass(frozen=True)
class Verdict:
    """What is seen of an evaluation at one glance.

    Attributes:
        success: Success rate as text.
        tone: `good`, `fair` or `bad` by the rate; `unknown` where it was not measured.
        interval: Its 95 % interval, and of how many episodes.
        facts: Name and value of the other numbers, or why there is none.
    """

    success: str
    tone: str
    interval: str
    facts: Sequence[tuple[str, str]]


def verdict(
    evaluation: EvaluationRecord, open_loop: OpenLoop | None, rollouts: Sequence[RolloutActions]
) -> Verdict:
    """The verdict on an evaluation.

    Args:
        evaluation: The evaluation.
        open_loop: Its comparison with held-out demonstrations; None: there is none.
        rollouts: Actions of its recorded episodes.
    """
    row, rate = evaluation_row(evaluation), success_rate_of(evaluation.results)
    episodes = "1 episode" if row.episodes == "1" else f"{row.episodes} episodes"
    facts = [_error_fact(open_loop)] if open_loop else []
    if rollouts:
        facts.append(("entropy, first to last decision", _entropy_text(evaluation, rollouts)))
    return Verdict(
        success=row.success,
        tone=_tone(rate),
        interval=f"95 %: {row.interval}, {episodes}",
        facts=facts,
    )


def _tone(rate: float | None) -> str:
    if rate is None:
        return "unknown"
    return "good" if rate >= GOOD_FROM else "bad" if rate < BAD_BELOW else "fair"


def _error_fact(open_loop: OpenLoop) -> tuple[str, str]:
    name = "error against the expert, open loop"
    if open_loop.constant_error is not None:
        name += f"; best constant action {100 * open_loop.constant_error:.1f} %"
    return name, f"{100 * open_loop.error:.1f} % of the ranges"


def _entropy_text(evaluation: EvaluationRecord, rollouts: Sequence[RolloutActions]) -> str:
    """Mean over the episodes at their first and at their last decision."""
    known = [each.decisions for each in rollouts if each.decisions is not None]
    ends = np.array([(each[0], each[-1]) for each in known])
    if not len(ends) or np.isnan(ends).any():
        continuous = decoder_of(evaluation.results) == "continuous"
        return "none: an action head has no distribution" if continuous else "not recorded"
    first, last = ends.mean(axis=0)
    return f"{first:.2f} to {last:.2f} of {_MOST:.2f} nats"
