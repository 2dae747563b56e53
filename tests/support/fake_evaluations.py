"""Evaluations of policies without weights on suites without physics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.config import EvaluationSettings
from eval.evaluation.evaluate import EvaluationProgress, evaluate
from eval.evaluation.provenance import Provenance
from eval.pool.messages import PolicySource
from tests.support.fake_suite import FakeSuite, open_fake_suite


def fake_progress(out: Path, source: PolicySource) -> list[int]:
    """Numbers of finished episodes that an evaluation of two episodes reports."""
    reported: list[EvaluationProgress] = []
    settings = EvaluationSettings(suite="fake", tasks=[0], episodes=2, videos=0)
    evaluate(source, settings, out, open_suite=open_fake_suite, progress=reported.append)
    return [state.done for state in reported]


def earlier_journal(settings: Mapping[str, Any] | None) -> str:
    """Name of the journal of such an evaluation by versions that recorded none of what is left out."""
    suite = FakeSuite("fake")
    provenance = asdict(
        Provenance(suite.renderer(), suite.default_reset, "recomputed", suite.versions(), settings)
    )
    del provenance["precision"], provenance["decoder"], provenance["weights"]
    identity = {
        "policy": "expert",
        "suite": "fake",
        "horizon": None,
        "provenance": provenance,
        "standin_assets": suite.standin_assets,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return f"episodes-{digest}.jsonl"
