"""The table at the end of the demo."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.cli.demo_summary import summary_rows
from eval.evaluation.results import Results, write_results
from eval.rollout.episode import EpisodeResult
from pretrain.run_folder import RunFolder
from tests.support.fake_simulator import TASK


def test_success_names_its_suite_and_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    episodes = tuple(EpisodeResult(0, state, state == 0, 9, None, 0.1) for state in range(2))
    write_results(Results("robosuite_lift", 40, "p", (TASK,), episodes, {}, False), folder.evaluation(40))
    assert summary_rows(folder) == [
        ("success on robosuite_lift after step 40", "1 of 2 episodes, 0 errors (95 %: 9-91 %)")
    ]


def test_the_action_heads_error_is_shown_where_there_is_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lines = [{"step": step, "action_head_l1": error} for step, error in ((1, 0.5), (2, 0.25))]
    folder.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert summary_rows(folder) == [("error of the action head", "0.38 -> 0.38 of a range from -1 to 1")]
