"""Success on robosuite's Lift of policies that act by tokens, by the action head, or are trained for both.

The scripted expert's demonstrations are recorded and prepared once. Every policy is then trained from random
weights on the same samples in the same order, with the same seed, steps and learning rate:

    discrete    the token loss alone, no action head
    continuous  the action head alone (loss.tokens_for_actions=false)
    both        the sum of both losses, as RynnVLA-002 (arXiv 2511.17502)

and evaluated from the same initial states; `both` acts by the head and, once more, by its tokens. Success is
over all seeds, with the 95 % interval of Wilson. Only action samples are trained on, without world samples.

A stage whose result is in the working folder already is not repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import demo_runs
from benchmarks.demo_runs import CHUNK, SUCCESS_COLUMNS, SUITE, Sizes
from benchmarks.report import Column, Report, arguments

_COLUMNS = (
    Column("trained", "trained"),
    Column("acts", "acts by"),
    *SUCCESS_COLUMNS,
    Column("head_l1", "L1 of the head", "-1 to 1", digits=4),
    Column("token_l1", "L1 of the tokens", "-1 to 1", digits=4),
)
_HEAD = f"model.action_head.time_horizon={CHUNK}"
_TRAINED: dict[str, tuple[str, ...]] = {
    "discrete": (),
    "continuous": (_HEAD, "loss.tokens_for_actions=false"),
    "both": (_HEAD,),
}
_ACTS = (("discrete", "discrete"), ("continuous", "continuous"), ("both", "continuous"), ("both", "discrete"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("lift_decoders", __doc__)
    demo_runs.add_arguments(parser, steps=800)
    options = parser.parse_args(argv)
    sizes = demo_runs.sizes_of(options, Sizes(demonstrations=2, steps=2, seeds=1, episodes=1))
    work: Path = options.work.resolve()
    demo_runs.prepare(work, sizes)
    for seed in range(sizes.seeds):
        for trained, words in _TRAINED.items():
            demo_runs.train(work, f"{trained}_{seed}", seed, sizes.steps, *words)
    title = f"Lift: {sizes.demonstrations} demonstrations, {sizes.steps} steps of 8 sequences"
    report = Report("lift_decoders", title, _COLUMNS, options.device)
    for trained, acts in _ACTS:
        _add(report, work, trained, acts, sizes)
    report.note(
        f"tiny model (configs/model/tiny.yaml) from random weights, wrist camera of 64 px, K = {CHUNK}"
    )
    report.note("L1: mean over the last tenth of the training's lines")
    report.finish(options.out)
    return 0


def _add(report: Report, work: Path, trained: str, acts: str, sizes: Sizes) -> None:
    names = [f"{trained}_{seed}" for seed in range(sizes.seeds)]
    words = (f"suite={SUITE}", f"episodes={sizes.episodes}", f"decoder={acts}")
    results = [demo_runs.evaluate(work, f"{name}_{acts}", name, sizes, *words) for name in names]
    report.add(
        trained=trained,
        acts="tokens" if acts == "discrete" else "action head",
        **demo_runs.success(results),
        head_l1=demo_runs.final_mean(work, names, "action_head_l1"),
        token_l1=demo_runs.final_mean(work, names, "action_l1"),
    )


if __name__ == "__main__":
    sys.exit(main())
