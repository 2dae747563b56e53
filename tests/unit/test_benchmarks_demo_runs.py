"""The tables of the benchmarks at the demo's scale, of results that are in the working folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo_runs, lift_decoders, shuffle_training, variant_success

SUCCESSES = {  # by trained, seed, decoder
    ("discrete", 0, "discrete"): 2,
    ("discrete", 1, "discrete"): 4,
    ("continuous", 0, "continuous"): 8,
    ("continuous", 1, "continuous"): 10,
    ("both", 0, "continuous"): 0,
    ("both", 1, "continuous"): 0,
    ("both", 0, "discrete"): 5,
    ("both", 1, "discrete"): 6,
}


def write_run(folder: Path, head: bool, tokens: bool, seed: int) -> None:
    """A finished training of 20 lines."""
    (folder / "checkpoints" / "step_00000020").mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"event": "start"}]
    for step in range(1, 21):
        line = {"step": step, "action_l1": 0.01 * seed if tokens else None}
        lines.append(line | ({"action_head_l1": 0.1 if step > 18 else 5.0} if head else {}))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def write_prepared(folder: Path, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data; from here on a stage that runs is an error."""

    def refuse(*words: str) -> None:
        raise AssertionError(f"a stage that is done was repeated: {words}")

    monkeypatch.setattr(demo_runs, "run", refuse)
    (folder / "demonstrations").mkdir()
    (folder / shards).mkdir()
    (folder / shards / "index.json").write_text("{}")


def write_results(folder: Path, name: str, successes: int, episodes: int) -> None:
    out = folder / "evaluations" / name
    out.mkdir(parents=True)
    (out / "results.json").write_text(json.dumps({"successes": successes, "episodes": episodes, "errors": 0}))


def test_success_is_over_all_seeds_with_its_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prepared(tmp_path, "shards", monkeypatch)
    for (trained, seed, acts), successes in SUCCESSES.items():
        write_results(tmp_path, f"{trained}_{seed}_{acts}", successes, 10)
        run = tmp_path / "runs" / f"{trained}_{seed}"
        if not run.exists():
            write_run(run, trained != "discrete", trained != "continuous", seed)
    out = tmp_path / "out.json"
    words = ["--work", str(tmp_path), "--steps", "20", "--seeds", "2", "--episodes", "10"]
    assert lift_decoders.main([*words, "--device", "cpu", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["trained"], row["acts"], row["by_seed"]) for row in rows] == [
        ("discrete", "tokens", "2 4"),
        ("continuous", "action head", "8 10"),
        ("both", "action head", "0 0"),
        ("both", "tokens", "5 6"),
    ]
    assert [row["success"] for row in rows] == [30, 90, 0, 55]
    assert [row["episodes"] for row in rows] == [20] * 4
    assert rows[0]["low"] == pytest.approx(14.55, abs=0.01), "Wilson's interval of 6 of 20"
    assert rows[0]["high"] == pytest.approx(51.90, abs=0.01)
    assert [row["head_l1"] for row in rows] == [None, pytest.approx(0.1), *[pytest.approx(0.1)] * 2]
    assert [row["token_l1"] for row in rows] == [pytest.approx(0.005), None, *[pytest.approx(0.005)] * 2]


def test_variants_are_compared_on_every_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prepared(tmp_path, "variant_shards", monkeypatch)
    for variants in (0, 4):
        for seed in range(2):
            write_run(tmp_path / "runs" / f"variants{variants}_{seed}", head=False, tokens=True, seed=seed)
            for number, suite in enumerate(("", "_camera", "_noise")):
                name = f"variants{variants}_{seed}_robosuite_lift{suite}"
                write_results(tmp_path, name, number + variants + seed, 10)
    out = tmp_path / "out.json"
    words = ["--work", str(tmp_path), "--steps", "20", "--seeds", "2", "--episodes", "10", "--variants", "4"]
    assert variant_success.main([*words, "--device", "cpu", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["suite"], row["variants"], row["by_seed"]) for row in rows] == [
        ("robosuite_lift", 0, "0 1"),
        ("robosuite_lift", 4, "4 5"),
        ("robosuite_lift_camera", 0, "1 2"),
        ("robosuite_lift_camera", 4, "5 6"),
        ("robosuite_lift_noise", 0, "2 3"),
        ("robosuite_lift_noise", 4, "6 7"),
    ]
    with pytest.raises(SystemExit):
        variant_success.main([*words, "--episodes", "15"])


def test_losses_in_both_orders_are_compared_with_the_scatter_of_the_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prepared(tmp_path, "shards", monkeypatch)
    for order, loss in (("full", 1.0), ("local", 1.25), ("local_one_episode", 3.0)):
        for seed in range(2):
            run = tmp_path / "runs" / f"shuffle_{order}_{seed}"
            (run / "checkpoints" / "step_00000020").mkdir(parents=True)
            lines = [{"step": step, "loss": loss + seed / 2 if step > 18 else 9.0} for step in range(1, 21)]
            lines += [{"event": "validation", "step": at, "val_ind/loss": at * loss} for at in (10, 20)]
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    out = tmp_path / "out.json"
    words = ["--work", str(tmp_path), "--steps", "20", "--seeds", "2", "--device", "cpu", "--out", str(out)]
    assert shuffle_training.main(words) == 0
    written = json.loads(out.read_text())
    assert [(row["way"], row["measure"], row["mean"], row["lowest"]) for row in written["rows"]] == [
        ("full", "trained on", 1.25, 1.0),
        ("local", "trained on", 1.5, 1.25),
        ("local, one episode", "trained on", 3.25, 3.0),
        ("full", "held out", 20, 20),
        ("local", "held out", 25, 25),
        ("local, one episode", "held out", 60, 60),
    ]
    assert [(target["met"], target["value"]) for target in written["targets"]] == [(True, 0.25), (False, 5)]
