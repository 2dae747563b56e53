"""Each evaluation of a run on the page: verdict, episodes that play, policy against expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.storage.episode_entry import TRAINING_SPLIT
from eval.report.action_charts import action_charts, parts_most_at
from eval.report.action_data import OpenLoop, RolloutActions, read_open_loop, read_rollout
from eval.report.charts import Chart
from eval.report.evaluation_tables import step_text
from eval.report.evaluations import EvaluationRecord, Key, episode_key, newest_and_earlier
from eval.report.json_values import number, rows
from eval.report.rollout_media import Video, data_url, outcome_text, speed_text
from eval.report.run_contents import RunContents
from eval.report.verdicts import Verdict, verdict
from eval.rollout.trace import trace_of


@dataclass(frozen=True)
class ActionFigure:
    """Policy against expert over one episode.

    Attributes:
        title: Which episode.
        explanation: What the curves are.
        charts: Small ones, of each number of an action and of the entropy.
        has_expert: Whether there are curves of the expert.
        picture: PNG of the frames where they part, as a data URL; None: there is none.
        caption: Of the picture.
    """

    title: str
    explanation: str
    charts: Sequence[Chart]
    has_expert: bool
    picture: str | None = None
    caption: str = ""


@dataclass(frozen=True)
class Panel:
    """One evaluation on the page.

    Attributes:
        title: Suite and step.
        is_newest: Whether it is the last one of its label.
        videos: Tiles of its episodes.
        shown: How many episodes have one, and how fast they are played, in words.
        figures: Policy against expert; of the last evaluation only.
    """

    title: str
    is_newest: bool
    verdict: Verdict
    videos: Sequence[Video]
    shown: str
    figures: Sequence[ActionFigure]


def panels(run: RunContents, videos: Sequence[Video]) -> list[Panel]:
    """The evaluations of a run: the last one of each label, then the earlier ones from the newest back.

    Args:
        run: The run.
        videos: All tiles of the page.

    Raises:
        InputError: A file of actions is damaged.
    """
    last, earlier = newest_and_earlier(run.evaluations)
    return [_panel(e, videos, True) for e in last] + [_panel(e, videos, False) for e in earlier]


def _panel(evaluation: EvaluationRecord, videos: Sequence[Video], is_newest: bool) -> Panel:
    own = [video for video in videos if video.evaluation is evaluation]
    open_loop = next((found for each in evaluation.folders if (found := read_open_loop(each))), None)
    rollouts = {
        key: actions
        for key, video in evaluation.videos.items()
        if (actions := read_rollout(trace_of(video))) is not None
    }
    figures = []
    if is_newest:
        figures = [_rollout_figure(evaluation, key, rollouts[key]) for key in _shown(evaluation, rollouts)]
        figures += [] if open_loop is None else [_open_loop_figure(evaluation, open_loop)]
    return Panel(
        title=_title(evaluation),
        is_newest=is_newest,
        verdict=verdict(evaluation, open_loop, list(rollouts.values())),
        videos=own,
        shown=_shown_text(evaluation, own),
        figures=figures,
    )


def _title(evaluation: EvaluationRecord) -> str:
    return (
        evaluation.label if evaluation.step is None else f"{evaluation.label}, step {step_text(evaluation)}"
    )


def _shown_text(evaluation: EvaluationRecord, videos: Sequence[Video]) -> str:
    count = number(evaluation.results, "episodes") or 0
    if not videos:
        omitted = len(evaluation.videos)
        return (
            f"Its {_count(omitted, 'video')}, too large for this page, stay in its folder." if omitted else ""
        )
    text = f"{len(videos)} of {count:.0f} episodes, failures first"
    if len(videos) < len(evaluation.videos):
        text += f"; {len(evaluation.videos) - len(videos)} more videos are in its folder"
    return f"{text}. {speed_text(videos)}".strip()


def _shown(evaluation: EvaluationRecord, rollouts: dict[Key, RolloutActions]) -> list[Key]:
    """The first failing and the first solved episode with actions."""
    keys = [
        (bool(row.get("success")), key)
        for row in rows(evaluation.results, "per_episode")
        if (key := episode_key(row)) in rollouts and key is not None
    ]
    return [
        next(key for solved, key in keys if solved == kind)
        for kind in (False, True)
        if any(solved == kind for solved, _ in keys)
    ]


def _rollout_figure(evaluation: EvaluationRecord, key: Key, actions: RolloutActions) -> ActionFigure:
    row = next(r for r in rows(evaluation.results, "per_episode") if episode_key(r) == key)
    curves = actions.curves
    explanation = f"Executed actions, {actions.chunk} decided at a time."
    if curves.expert is None:
        explanation += " The expert of this task cannot be asked in another's states."
    else:
        explanation += " The expert's are what its script would do in the same states, where it goes on."
        if (step := parts_most_at(curves)) is not None:
            explanation += f" They part most at step {step}."
    if curves.entropy is None:
        explanation += " There is no entropy: the policy has no distribution."
    task, state = key
    return ActionFigure(
        title=f"In the simulator, state {state}: {outcome_text(row)}",
        explanation=explanation,
        charts=action_charts(curves, f"{_title(evaluation)} {task} {state}"),
        has_expert=curves.expert is not None,
    )


def _open_loop_figure(evaluation: EvaluationRecord, open_loop: OpenLoop) -> ActionFigure:
    curves = open_loop.curves
    explanation = (
        f"Demonstration {open_loop.episode} ({open_loop.split}): at each of its frames the policy's first "
        "action beside the recorded one; nothing is executed. Mean errors are over "
        f"{_count(open_loop.episodes, 'demonstration')}."
    )
    return ActionFigure(
        title=f"On {_demonstrations(open_loop.split)}: error {100 * open_loop.error:.1f} % of the ranges",
        explanation=explanation,
        charts=action_charts(
            curves, f"{_title(evaluation)} open loop", open_loop.mean_absolute_error.tolist()
        ),
        has_expert=True,
        picture=None if open_loop.picture is None else data_url(open_loop.picture, "image/png"),
        caption=_partings_text(open_loop),
    )


def _demonstrations(split: str) -> str:
    """What the policy was compared on: a run without held-out demonstrations has those of its training."""
    return "demonstrations of the training" if split == TRAINING_SPLIT else "held-out demonstrations"


def _partings_text(open_loop: OpenLoop) -> str:
    """The frames where they part, each with the number that differs most there."""
    texts, recorded = [], open_loop.curves.expert
    if recorded is None:
        return ""
    for parting in open_loop.partings:
        policy, expert = open_loop.curves.policy[parting.frame], recorded[parting.frame]
        worst = int((abs(policy - expert) / open_loop.widths).argmax())
        texts.append(
            f"step {parting.frame} ({100 * parting.error:.0f} %): {open_loop.curves.names[worst]} "
            f"{policy[worst]:.2f}, expert {expert[worst]:.2f}"
        )
    return f"They part most at {'; '.join(texts)}." if texts else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
