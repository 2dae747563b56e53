"""Success of policies trained with and without views under drawn camera changes, at the demo's scale.

The scripted expert's demonstrations are recorded once and prepared with `variants=V`: every episode is
encoded V more times under drawn changes of the camera. Trainings from random weights draw from 0 of them
(recorded frames only) or from all V, with the same samples in the same order, seeds, steps and learning rate.
They are evaluated from the same initial states with the camera as recorded, and with LIBERO-Plus' changes:

    lift            robosuite_lift, robosuite_lift_camera (ten viewpoints), robosuite_lift_noise (ten noises)
    libero_object   task 0 of LIBERO-Object, and of its tasks in libero_plus_camera and libero_plus_noise ten,
                    evenly spread

Success is over all seeds, with the 95 % interval of Wilson. A stage whose result is in the working folder
already is not repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import demo_runs
from benchmarks.demo_runs import CHUNK, SUCCESS_COLUMNS, SUITE, Sizes
from benchmarks.report import Column, Report, arguments
from eval.simulator.registry import open_suite

_PERTURBED_TASKS = 10  # of each perturbed suite; `episodes` counts those of one task
_COLUMNS = (
    Column("variants", "data.variants"),
    Column("suite", "suite"),
    *SUCCESS_COLUMNS,
    Column("token_l1", "L1 of the tokens", "-1 to 1", digits=4),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """A task that policies are compared on.

    Attributes:
        title: In words.
        suite: With the camera as recorded.
        task: Its number there.
        perturbed: Suites of the same task with LIBERO-Plus' changes.
        cameras: Of the policy.
        length: Tokens of a training sequence, which hold one action sample.
    """

    title: str
    suite: str
    task: int
    perturbed: tuple[str, str]
    cameras: str
    length: int


COMPARED = {
    "lift": Compared("Lift", SUITE, 0, (f"{SUITE}_camera", f"{SUITE}_noise"), "agent", 160),
    "libero_object": Compared(
        "LIBERO-Object, task 0",
        "libero_object",
        0,
        ("libero_plus_camera", "libero_plus_noise"),
        "agent,wrist",
        256,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("variant_success", __doc__)
    demo_runs.add_arguments(parser, steps=1200)
    parser.add_argument("--task", choices=COMPARED, default="lift", help="default: %(default)s")
    parser.add_argument("--variants", type=int, default=8, help="views beside the recorded one")
    options = parser.parse_args(argv)
    sizes = demo_runs.sizes_of(options, Sizes(demonstrations=2, steps=2, seeds=1, episodes=_PERTURBED_TASKS))
    if sizes.episodes % _PERTURBED_TASKS:
        parser.error(f"--episodes={sizes.episodes}, expected a multiple of {_PERTURBED_TASKS}")
    work: Path = options.work.resolve()
    task = COMPARED[options.task]
    variants: int = 1 if options.smoke else options.variants
    suites = _evaluated(task)
    demo_runs.prepare(
        work, sizes, "variant_shards", f"variants={variants}", suite=_words(task.suite, suites[task.suite])
    )
    for seed in range(sizes.seeds):
        for count in (0, variants):
            words = (
                f"data.cameras=[{task.cameras}]",
                f"data.variants={count}",
                f"trainer.sequence_length={task.length}",
            )
            name = f"variants{count}_{seed}"
            demo_runs.train(work, name, seed, sizes.steps, *words, shards="variant_shards")
    title = f"{task.title}: {sizes.demonstrations} demonstrations, {sizes.steps} steps of 8 sequences"
    report = Report("variant_success", title, _COLUMNS, options.device)
    for suite, tasks in suites.items():
        for count in (0, variants):
            names = [f"variants{count}_{seed}" for seed in range(sizes.seeds)]
            words = (*_words(suite, tasks), f"episodes={sizes.episodes // len(tasks)}")
            results = [demo_runs.evaluate(work, f"{name}_{suite}", name, sizes, *words) for name in names]
            report.add(
                variants=count,
                suite=suite,
                **demo_runs.success(results),
                token_l1=demo_runs.final_mean(work, names, "action_l1"),
            )
    report.note(
        "tiny model (configs/model/tiny.yaml) from random weights, "
        f"cameras of 64 px: {task.cameras}, K = {CHUNK}"
    )
    report.note("L1: mean over the last tenth of the training's lines, on what it was trained on")
    report.finish(options.out)
    return 0


def _evaluated(task: Compared) -> dict[str, list[int]]:
    """Suite -> numbers of the tasks to evaluate: one as recorded, ten perturbed."""
    suites = {task.suite: [task.task]}
    base = open_suite(task.suite).tasks[task.task]
    for name in task.perturbed:
        numbers = [info.number for info in open_suite(name).tasks if info.name.startswith(base.name)]
        suites[name] = [
            numbers[len(numbers) * place // _PERTURBED_TASKS] for place in range(_PERTURBED_TASKS)
        ]
    return suites


def _words(suite: str, tasks: Sequence[int]) -> tuple[str, str]:
    return f"suite={suite}", f"tasks=[{','.join(map(str, tasks))}]"


if __name__ == "__main__":
    sys.exit(main())
