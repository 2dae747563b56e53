"""Training in the report: charts of learning, speed and memory, stragglers, and events of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.charts import Chart, Mark, Series, format_number, line_chart
from eval.report.json_values import Json, mapping, number
from eval.report.run_contents import RunContents

_PERCENT = 100.0
_GROUPS = {
    "embedding": "embedding",
    "attention": "attention",
    "feed_forward": "feed-forward",
    "norms": "norms",
    "head": "head",
    "action_head": "action head",
}
_SPLITS = {"val_ind": "new episodes", "val_ood": "new tasks"}
_OF_SOURCE = "loss_action/"
_TONES = 6
_UNMARKED_EVENTS = ("validation", "straggler", "profile")  # shown elsewhere


@dataclass(frozen=True)
class StragglerRow:
    """A rank that delayed the others."""

    rank: str
    host: str
    step: str
    above: str
    data_wait: str


def learning_charts(run: RunContents) -> list[Chart]:
    """Curves over steps with marks at every event; held-out splits beside the training."""
    marks = _marks(run)
    validations = [event for event in run.events if event.get("event") == "validation"]

    def with_splits(key: str) -> list[Series]:
        curves = [_curve(run.steps, key, "training", 1)]
        for tone, split in enumerate(_split_names(validations), start=2):
            label = _SPLITS.get(split, split)
            curves.append(_curve(validations, f"{split}/{key}", label, min(tone, 5), dots=True))
        return curves

    def groups(kind: str) -> list[Series]:
        return [
            _curve(run.steps, f"{kind}_norm/{group}", label, tone)
            for tone, (group, label) in enumerate(_GROUPS.items(), start=1)
        ]

    sources = dict.fromkeys(
        name.removeprefix(_OF_SOURCE) for line in run.steps for name in line if name.startswith(_OF_SOURCE)
    )
    by_source = [
        _curve(run.steps, f"{_OF_SOURCE}{name}", name, number % _TONES + 1)
        for number, name in enumerate(sources)
    ]
    kinds = (("action", "actions"), ("image", "images"), ("structure", "structure"))
    accuracies = [
        _curve(run.steps, f"accuracy_{kind}", label, tone, _PERCENT)
        for tone, (kind, label) in enumerate(kinds, start=1)
    ]
    return _without_empty(
        line_chart("Loss of actions", "nats a token", with_splits("loss_action"), marks=marks),
        line_chart("Loss of actions", "nats a token, by data set", by_source, marks=marks),
        line_chart("Loss of images", "nats a token", with_splits("loss_image"), marks=marks),
        line_chart("Loss of structure", "nats a token", with_splits("loss_structure"), marks=marks),
        line_chart("Token accuracy", "%", accuracies, marks=marks, y_range=(0.0, 100.0)),
        line_chart("Error of actions", "L1, range -1 to 1", with_splits("action_l1"), marks=marks),
        line_chart(
            "Error of the action head", "L1, range -1 to 1", with_splits("action_head_l1"), marks=marks
        ),
        line_chart("Learning rate", "", [_curve(run.steps, "learning_rate", "training", 4)], marks=marks),
        line_chart(
            "Gradient norm", "before clipping", [_curve(run.steps, "gradient_norm", "global", 3)], marks=marks
        ),
        line_chart("Gradient norm", "by group", groups("gradient"), marks=marks),
        line_chart("Weight norm", "by group", groups("parameter"), marks=marks),
    )


def speed_charts(run: RunContents) -> list[Chart]:
    """Throughput, times of a step, memory, and stalls by checkpoints."""
    steps, marks = run.steps, _marks(run)
    stalls = [line for line in steps if (number(line, "checkpoint_stall") or 0.0) > 0]
    return _without_empty(
        line_chart(
            "Throughput", "tokens/s", [_curve(steps, "tokens_per_second", "all ranks", 1)], marks=marks
        ),
        line_chart("Model FLOPs utilisation", "%", [_curve(steps, "mfu", "MFU", 3, _PERCENT)], marks=marks),
        line_chart(
            "Time of a step",
            "s",
            [
                _curve(steps, "step_time", "whole", 1),
                _curve(steps, "peer_wait", "collectives", 3),
                _curve(steps, "data_wait", "data", 2),
            ],
            marks=marks,
        ),
        line_chart(
            "Own time of the ranks",
            "s a step",
            [
                _curve(steps, "rank_time/p50", "median", 1),
                _curve(steps, "rank_time/p90", "90 %", 4),
                _curve(steps, "rank_time/max", "slowest", 2),
            ],
            marks=marks,
        ),
        line_chart(
            "Memory",
            "GB, largest over ranks",
            [
                _curve(steps, "memory/device_reserved", "GPU reserved", 2),
                _curve(steps, "memory/device_allocated", "GPU allocated", 1),
                _curve(steps, "memory/host_resident", "host", 3),
            ],
            marks=marks,
        ),
        line_chart(
            "Stall by checkpoints",
            "s a line",
            [_curve(stalls, "checkpoint_stall", "longest rank", 4, dots=True)],
            marks=marks,
        ),
    )


def straggler_rows(run: RunContents) -> list[StragglerRow]:
    """Reported stragglers, in the order of steps."""
    return [
        StragglerRow(
            rank=_integer(event, "rank"),
            host=str(event.get("host", "")),
            step=_integer(event, "step"),
            above=_seconds(event, "seconds_above_median"),
            data_wait=_seconds(event, "data_wait"),
        )
        for event in run.events
        if event.get("event") == "straggler"
    ]


def history(run: RunContents) -> list[str]:
    """Events of the run, one sentence each."""
    return [event_sentence(event) for event in run.events if event.get("event") not in _UNMARKED_EVENTS]


def event_sentence(event: Json) -> str:
    """An event as a sentence."""
    at = f" at step {_integer(event, 'step')}" if number(event, "step") is not None else ""
    before, after = mapping(event, "parallel_before"), mapping(event, "parallel")
    text = f"{str(event.get('event', 'event')).capitalize()}{at}"
    if before and after and before != after:
        return f"{text}: {layout(before)} before, {layout(after)} after."
    return f"{text} on {layout(after)}." if after else f"{text}."


def layout(parallel: Json) -> str:
    """A parallel layout as short text."""
    stage = number(parallel, "zero_stage")
    grid = f"TP {_integer(parallel, 'tensor')} x DP {_integer(parallel, 'data')}"
    return grid + (f", ZeRO-{stage:.0f}" if stage is not None else "")


def _marks(run: RunContents) -> list[Mark]:
    events = [
        (number(event, "step"), event) for event in run.events if event.get("event") not in _UNMARKED_EVENTS
    ]
    return [Mark(step, _event_label(event)) for step, event in events if step is not None]


def _event_label(event: Json) -> str:
    parallel = mapping(event, "parallel")
    text = str(event.get("event", "event"))
    return f"{text}, {layout(parallel)}" if parallel else text


def _split_names(validations: Sequence[Json]) -> list[str]:
    """Measured splits, the known ones first."""
    names = {name.removesuffix("/loss") for event in validations for name in event if name.endswith("/loss")}
    return sorted(names, key=lambda split: (split not in _SPLITS, split))


def _curve(
    lines: Sequence[Json], key: str, label: str, tone: int, factor: float = 1.0, dots: bool = False
) -> Series:
    values = [(number(line, "step"), number(line, key)) for line in lines]
    points = [(step, factor * value) for step, value in values if step is not None and value is not None]
    return Series(label, points, tone, dots=dots)


def _without_empty(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _integer(values: Json, key: str) -> str:
    return f"{number(values, key) or 0.0:.0f}"


def _seconds(values: Json, key: str) -> str:
    value = number(values, key)
    return "not measured" if value is None else f"{format_number(value)} s"
