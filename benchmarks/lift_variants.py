"""Success on robosuite's Lift of policies trained with and without views under drawn camera changes.

The scripted expert's demonstrations are recorded once and prepared with `variants=V`: every episode is
encoded V more times under drawn changes of the camera. Trainings from random weights draw from 0 of them
(recorded frames only) or from all V, with the same samples in the same order, seeds, steps and learning rate.
They see the agent camera, and are evaluated from the same initial states on

    robosuite_lift          the camera as recorded
    robosuite_lift_camera   ten of LIBERO-Plus' camera viewpoints
    robosuite_lift_noise    ten of LIBERO-Plus' sensor noises

Success is over all seeds, with the 95 % interval of Wilson. A stage whose result is in the working folder
already is not repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import lift_runs
from benchmarks.lift_runs import CHUNK, SUCCESS_COLUMNS, SUITE, Sizes
from benchmarks.report import Column, Report, arguments

_PERTURBED_TASKS = 10  # of each perturbed suite; `episodes` counts those of one task
_SUITES = {SUITE: 1, f"{SUITE}_camera": _PERTURBED_TASKS, f"{SUITE}_noise": _PERTURBED_TASKS}
_COLUMNS = (
    Column("variants", "data.variants"),
    Column("suite", "suite"),
    *SUCCESS_COLUMNS,
    Column("token_l1", "L1 of the tokens", "-1 to 1", digits=4),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("lift_variants", __doc__)
    lift_runs.add_arguments(parser, steps=1200)
    parser.add_argument("--variants", type=int, default=8, help="views beside the recorded one")
    options = parser.parse_args(argv)
    sizes = lift_runs.sizes_of(options, Sizes(demonstrations=2, steps=2, seeds=1, episodes=_PERTURBED_TASKS))
    if sizes.episodes % _PERTURBED_TASKS:
        parser.error(f"--episodes={sizes.episodes}, expected a multiple of {_PERTURBED_TASKS}")
    work: Path = options.work.resolve()
    variants: int = 1 if options.smoke else options.variants
    lift_runs.prepare(work, sizes, "variant_shards", f"variants={variants}")
    for seed in range(sizes.seeds):
        for count in (0, variants):
            words = ("data.cameras=[agent]", f"data.variants={count}")
            name = f"variants{count}_{seed}"
            lift_runs.train(work, name, seed, sizes.steps, *words, shards="variant_shards")
    title = f"Lift: {sizes.demonstrations} demonstrations, {sizes.steps} steps of 8 sequences"
    report = Report("lift_variants", title, _COLUMNS, options.device)
    for suite, tasks in _SUITES.items():
        for count in (0, variants):
            _add(report, work, suite, count, sizes, sizes.episodes // tasks)
    report.note(
        f"tiny model (configs/model/tiny.yaml) from random weights, agent camera of 64 px, K = {CHUNK}"
    )
    report.note("L1: mean over the last tenth of the training's lines, on what it was trained on")
    report.finish(options.out)
    return 0


def _add(report: Report, work: Path, suite: str, variants: int, sizes: Sizes, episodes: int) -> None:
    names = [f"variants{variants}_{seed}" for seed in range(sizes.seeds)]
    words = (f"suite={suite}", f"episodes={episodes}")
    results = [lift_runs.evaluate(work, f"{name}_{suite}", name, sizes, *words) for name in names]
    report.add(
        variants=variants,
        suite=suite,
        **lift_runs.success(results),
        token_l1=lift_runs.final_mean(work, names, "action_l1"),
    )


if __name__ == "__main__":
    sys.exit(main())
