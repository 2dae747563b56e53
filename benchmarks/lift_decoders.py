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

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Column, Report, arguments
from eval.evaluation.results import wilson

_SUITE = "robosuite_lift"
_DEMONSTRATIONS = 24
_CHUNK = 5
_COLUMNS = (
    Column("trained", "trained"),
    Column("acts", "acts by"),
    Column("seeds", "seeds"),
    Column("episodes", "episodes"),
    Column("successes", "successes"),
    Column("success", "success", "%", digits=1),
    Column("low", "95 % from", "%", digits=1),
    Column("high", "to", "%", digits=1),
    Column("by_seed", "successes by seed"),
    Column("head_l1", "L1 of the head", "-1 to 1", digits=4),
    Column("token_l1", "L1 of the tokens", "-1 to 1", digits=4),
)
_HEAD = f"model.action_head.time_horizon={_CHUNK}"
_TRAINED: dict[str, tuple[str, ...]] = {
    "discrete": (),
    "continuous": (_HEAD, "loss.tokens_for_actions=false"),
    "both": (_HEAD,),
}
_ACTS = (("discrete", "discrete"), ("continuous", "continuous"), ("both", "continuous"), ("both", "discrete"))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is recorded, trained and evaluated.

    Attributes:
        demonstrations: Episodes of the expert.
        steps: Optimiser steps of each training, of 8 sequences.
        seeds: Trainings of each kind.
        episodes: Of each evaluation.
    """

    demonstrations: int
    steps: int
    seeds: int
    episodes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("lift_decoders", __doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for demonstrations, shards and runs")
    parser.add_argument("--steps", type=int, help="optimiser steps of each training; default: 800")
    parser.add_argument("--seeds", type=int, help="trainings of each kind; default: 3")
    parser.add_argument("--episodes", type=int, help="episodes of each evaluation; default: 50")
    options = parser.parse_args(argv)
    smoke = options.smoke
    sizes = Sizes(
        demonstrations=2 if smoke else _DEMONSTRATIONS,
        steps=options.steps or (2 if smoke else 800),
        seeds=options.seeds or (1 if smoke else 3),
        episodes=options.episodes or (1 if smoke else 50),
    )
    work: Path = options.work.resolve()
    _prepare(work, sizes)
    for seed in range(sizes.seeds):
        for trained in _TRAINED:
            _train(work, trained, seed, sizes.steps)
    title = f"Lift: {sizes.demonstrations} demonstrations, {sizes.steps} steps of 8 sequences"
    report = Report("lift_decoders", title, _COLUMNS, options.device)
    for trained, acts in _ACTS:
        results = [_evaluate(work, trained, acts, seed, sizes) for seed in range(sizes.seeds)]
        _add(report, work, trained, acts, results)
    report.note(
        f"tiny model (configs/model/tiny.yaml) from random weights, wrist camera of 64 px, K = {_CHUNK}"
    )
    report.note("L1: mean over the last tenth of the training's lines")
    report.finish(options.out)
    return 0


def _prepare(work: Path, sizes: Sizes) -> None:
    demonstrations, shards = work / "demonstrations", work / "shards"
    if not demonstrations.exists():
        count = f"episodes={sizes.demonstrations}"
        _worldvla("collect", f"suite={_SUITE}", count, f"out={demonstrations}", "workers=1")
    if not (shards / "index.json").exists():
        _worldvla("prepare", f"source={demonstrations}", f"out={shards}", "workers=1")


def _train(work: Path, trained: str, seed: int, steps: int) -> None:
    name = f"{trained}_{seed}"
    if _checkpoint(work, name, steps).exists():
        return
    _run(
        "-m",
        "pretrain.torchrun",
        "--standalone",
        "--nproc-per-node=1",
        "-m",
        "pretrain.main",
        "experiment=demo",
        "parallel=single",
        f"run.dir={work / 'runs'}",
        f"run.name={name}",
        f"data.url={work / 'shards'}",
        "data.split=all",
        "data.mixture.world=0",
        f"data.chunk={_CHUNK}",
        f"trainer.steps={steps}",
        f"trainer.seed={seed}",
        "trainer.sequence_length=160",
        f"checkpointing.every={steps}",
        "telemetry.wandb=disabled",
        *_TRAINED[trained],
    )


def _evaluate(work: Path, trained: str, acts: str, seed: int, sizes: Sizes) -> dict[str, Any]:
    """The summary of the results of one policy."""
    out = work / "evaluations" / f"{trained}_{seed}_{acts}"
    if not (out / "results.json").exists():
        _worldvla(
            "eval",
            f"checkpoint={_checkpoint(work, f'{trained}_{seed}', sizes.steps)}",
            f"suite={_SUITE}",
            f"episodes={sizes.episodes}",
            f"decoder={acts}",
            "workers=1",
            "videos=0",
            f"out={out}",
        )
    return json.loads((out / "results.json").read_bytes())


def _checkpoint(work: Path, name: str, steps: int) -> Path:
    return work / "runs" / name / "checkpoints" / f"step_{steps:08d}"


def _add(report: Report, work: Path, trained: str, acts: str, results: Sequence[dict[str, Any]]) -> None:
    by_seed = [int(result["successes"]) for result in results]
    episodes = sum(int(result["episodes"]) for result in results)
    low, high = wilson(sum(by_seed), episodes)
    names = [f"{trained}_{seed}" for seed in range(len(results))]
    report.add(
        trained=trained,
        acts="tokens" if acts == "discrete" else "action head",
        seeds=len(results),
        episodes=episodes,
        successes=sum(by_seed),
        success=100 * sum(by_seed) / episodes,
        low=100 * low,
        high=100 * high,
        by_seed=" ".join(map(str, by_seed)),
        head_l1=_final(work, names, "action_head_l1"),
        token_l1=_final(work, names, "action_l1"),
    )


def _final(work: Path, names: Sequence[str], metric: str) -> float | None:
    """Mean of a metric over the last tenth of the lines of several trainings; None: it was not measured."""
    values: list[float] = []
    for name in names:
        found = [
            value for value in _metric(work / "runs" / name / "metrics.jsonl", metric) if value is not None
        ]
        values += found[-max(1, len(found) // 10) :] if found else []
    return sum(values) / len(values) if values else None


def _metric(path: Path, metric: str) -> Iterator[float | None]:
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        if "event" not in record:
            yield record.get(metric)


def _worldvla(*words: str) -> None:
    _run("-m", "cluster.cli.main", *words)


def _run(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True)


if __name__ == "__main__":
    sys.exit(main())
