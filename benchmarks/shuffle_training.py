"""Losses of the demo's training with the windows in the full and in the local order, several seeds each.

The scripted expert's demonstrations of robosuite's Lift (`benchmarks.demo_runs`), of which a tenth is held
out; the tiny network from random weights, action and world samples. In the local order a place draws from
as many episodes at a time as by default (of so few demonstrations: from all of its stratum), and once more
from one, fewer than any real training has. Losses are means of the last tenth of the training's lines; the
held-out loss is that of the last validation. A training that is in the working folder already is not
repeated.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import demo_runs
from benchmarks.demo_runs import Sizes
from benchmarks.report import Column, Report, arguments

_ORDERS: dict[str, tuple[str, ...]] = {
    "full": ("data.shuffle=full",),
    "local": ("data.shuffle=local",),
    "local, one episode": ("data.shuffle=local", "data.shuffle_episodes=1"),
}
_COLUMNS = (
    Column("way", "order"),
    Column("measure", "loss"),
    Column("seeds", "seeds"),
    Column("mean", "mean", digits=3),
    Column("lowest", "lowest", digits=3),
    Column("highest", "highest", digits=3),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("shuffle_training", __doc__)
    demo_runs.add_arguments(parser, steps=400)
    options = parser.parse_args(argv)
    sizes = demo_runs.sizes_of(options, Sizes(demonstrations=10, steps=2, seeds=2, episodes=0))
    work: Path = options.work.resolve()
    demo_runs.prepare(work, sizes)
    for seed in range(sizes.seeds):
        for order in _ORDERS:
            _train(work, order, seed, sizes.steps)
    title = f"Losses of {sizes.steps} steps of 8 sequences on {sizes.demonstrations} demonstrations of Lift"
    report = Report("shuffle_training", title, _COLUMNS, options.device)
    for measure in ("trained on", "held out"):
        of_order = {order: _losses(work, order, sizes, measure) for order in _ORDERS}
        for order, losses in of_order.items():
            report.add(
                way=order,
                measure=measure,
                seeds=len(losses),
                mean=statistics.fmean(losses),
                lowest=min(losses),
                highest=max(losses),
            )
        compared = of_order["full"], of_order["local"]
        apart = abs(statistics.fmean(compared[1]) - statistics.fmean(compared[0]))
        scatter = max(max(losses) - min(losses) for losses in compared)
        met = None if options.smoke else apart <= scatter
        text = f"{measure}: the means of full and local differ by less than the seeds of one of them"
        report.target(text, met, apart)
    report.finish(options.out)
    return 0


def _train(work: Path, order: str, seed: int, steps: int) -> None:
    demo_runs.train(
        work,
        _name(order, seed),
        seed,
        steps,
        *_ORDERS[order],
        "data.split=train",
        "data.mixture.world=1",
        "trainer.sequence_length=384",
        f"validation.every={steps}",
        "validation.splits=[val_ind]",
    )


def _losses(work: Path, order: str, sizes: Sizes, measure: str) -> list[float]:
    """The loss of each seed."""
    names = [_name(order, seed) for seed in range(sizes.seeds)]
    if measure == "held out":
        return [_validation(work / "runs" / name / "metrics.jsonl") for name in names]
    found = [demo_runs.final_mean(work, [name], "loss") for name in names]
    return [loss for loss in found if loss is not None]


def _validation(path: Path) -> float:
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [record for record in records if record.get("event") == "validation"][-1]["val_ind/loss"]


def _name(order: str, seed: int) -> str:
    return f"shuffle_{order.replace(', ', '_').replace(' ', '_')}_{seed}"


if __name__ == "__main__":
    sys.exit(main())
