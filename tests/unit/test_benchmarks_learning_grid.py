"""The study's settings, its equal numbers of trained tokens, and its comparisons."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.learning.cells import Cell, cells
from benchmarks.learning.comparison import Compared, compare, interval_of_difference
from benchmarks.learning.results import CellResult
from benchmarks.learning.settings import DEFAULT_FILE, read_settings
from benchmarks.learning.token_budget import TOLERANCE, largest_difference
from data.errors import InputError
from data.stream.loader import TokenStream
from pretrain.config import TrainerConfig
from pretrain.planner.flops import Workload
from tests.support.shards_case import episode, write_dataset
from tests.support.study_case import TASK, VARIANTS


def written(folder: Path, **changed: Any) -> Path:
    content: dict[str, Any] = {"tasks": [dict(TASK)], "variants": VARIANTS, **changed}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": [0]}, "unknown setting 'seed'; did you mean 'seeds'"),
        ({"tasks": [TASK | {"step": 3}]}, "step"),
        ({"tasks": [{"name": "lift", "title": "Lift"}]}, "suite"),
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": [TASK, TASK]}, "tasks has a name twice"),
        ({"tasks": [TASK | {"name": "Lift 2"}]}, "tasks has the name 'Lift 2', expected a-z"),
        (
            {"tasks": [TASK | {"displaced": 1.1}]},
            "displaced of lift is 1.1, expected a probability",
        ),
        ({"seeds": [0, 0]}, r"seeds is \[0, 0\], expected different numbers of at least 0"),
        ({"jobs": 0}, "jobs is 0, expected at least 1"),
        ({"equal": "steps"}, "equal"),
        ({"reference": "chunk"}, "reference=chunk, expected one of the variants chunk_mask, world"),
        ({"reference_chunk": 7}, r"reference_chunk=7, expected one of the chunks \[5, 10\]"),
        ({"settings": ["trainer.steps=3"]}, "the study computes trainer.steps; leave it out"),
        ({"settings": ["run.dir=x"]}, "the study computes run.dir; leave it out"),
        ({"settings": ["fast"]}, "settings has 'fast', expected key=value"),
        ({"settings": ["trainer={seed: 7}"]}, "the study computes trainer.steps; set single keys of trainer"),
        ({"tasks": [TASK | {"collect": ["episodes=1"]}]}, "collect of lift has episodes=1, but the study"),
        ({"tasks": [TASK | {"prepare": ["out=/tmp/x"]}]}, "prepare of lift has out=/tmp/x, but the study"),
        (
            {"tasks": [TASK | {"vq": ["pixels=32"]}]},
            "vq of lift has pixels=32, but the study computes pixels",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_settings(written(tmp_path, **changed))
    assert str(raised.value).startswith(str(tmp_path / "study.yaml"))


def of_default(work: Path, global_batch: int = 8, mixture: float = 1, **changed: Any) -> list[Cell]:
    """The cells of the study that ships, on made-up episodes of Lift's instruction and frames."""
    content = yaml.safe_load(DEFAULT_FILE.read_text()) | changed
    content["settings"] = [*content["settings"], f"data.mixture.action={mixture}"]
    content["tasks"] = [content["tasks"][0] | {"steps": 1000, "global_batch": global_batch}]
    write_dataset(
        work / "lift" / "shards", episodes=[episode(n, 40, variants=8) for n in range(3)], variants=8
    )
    path = work / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return list(cells(read_settings(path), work))


def test_every_variant_trains_on_as_many_tokens(tmp_path: Path) -> None:
    found = {cell.name: cell for cell in of_default(tmp_path)}
    assert len(found) == 11, "the single action once, five variants with chunks of 5 and 10"
    assert found["chunk_mask_k5"].steps == 1000
    tokens = {name: cell.steps * cell.content.tokens for name, cell in found.items()}
    assert largest_difference(list(tokens.values())) <= TOLERANCE
    assert all(abs(cell.steps - 1000) <= 100 for cell in found.values()), "steps of about the same size"
    assert all(cell.content.padding < 0.03 for cell in found.values())
    samples = {name: cell.steps * cell.content.action_samples for name, cell in found.items()}
    assert samples["chunk_mask_world_k5"] < 0.5 * samples["chunk_mask_k5"], "world samples take their tokens"
    assert found["head_k10"].config.model.action_head is not None
    assert found["head_k10"].config.model.action_head.time_horizon == 10


def test_the_mixture_that_ships_can_be_packed_in_every_cell(tmp_path: Path) -> None:
    found = of_default(tmp_path, mixture=3)
    assert "data.mixture.action=3" in yaml.safe_load(DEFAULT_FILE.read_text())["settings"]
    tokens = [cell.steps * cell.content.tokens for cell in found]
    assert largest_difference(tokens) <= TOLERANCE
    for cell in found:
        assert cell.content.padding < 0.15, cell.name
        if cell.imagines:
            assert cell.content.action_samples == 3 * cell.content.world_samples, cell.name


def test_the_tokens_of_a_step_are_those_that_a_training_counts(tmp_path: Path) -> None:
    cell = next(cell for cell in of_default(tmp_path) if cell.name == "chunk_mask_world_k5")
    trainer = TrainerConfig(global_batch=cell.content.sequences, sequence_length=cell.content.length)
    with TokenStream(cell.config.data, trainer, seed=0) as stream:
        work = [Workload.of(batch) for step in range(20) for batch in stream.micro_batches(step, 0, 1)]
    counted = sum(work, Workload())
    assert counted.tokens / 20 == pytest.approx(cell.content.tokens, rel=0.001)
    assert counted.action_samples == 20 * cell.content.action_samples


def test_lengths_that_cannot_hold_the_samples_are_passed_over(tmp_path: Path) -> None:
    found = {cell.name: cell for cell in of_default(tmp_path, global_batch=1)}
    content = found["chunk_mask_world_k5"].content
    assert (content.sequences, content.action_samples, content.world_samples) == (1, 1, 1)
    task = found["chunk_mask_world_k5"].task
    task.sequence_length = 100
    again = {cell.name: cell for cell in cells(found["chunk_mask_k5"].settings, tmp_path)}
    with pytest.raises(InputError, match=r"trainer.sequence_length is 100; raise it to at least 13"):
        _ = again["chunk_mask_k5"].content


def test_action_samples_can_be_equal_instead(tmp_path: Path) -> None:
    found = {cell.name: cell for cell in of_default(tmp_path, equal="action_samples")}
    samples = [cell.steps * cell.content.action_samples for cell in found.values()]
    assert largest_difference(samples) <= TOLERANCE
    assert found["chunk_mask_world_k5"].steps > 2000


def test_tokens_can_be_given_instead_of_steps(tmp_path: Path) -> None:
    given = of_default(tmp_path)
    task = given[0].task
    task.tokens = 500_000
    tokens = [cell.steps * cell.content.tokens for cell in cells(given[0].settings, tmp_path)]
    assert tokens == pytest.approx([500_000] * 11, rel=TOLERANCE)


def test_all_rows_of_the_paper_are_compared_and_ours_with_its_best(tmp_path: Path) -> None:
    found = compare([CellResult(cell, [], {}, {}) for cell in of_default(tmp_path)])
    pairs = [(each.less, each.more) for each in found if each.chunk == 10 and each.claimed]
    order = ["chunk", "single", "chunk_mask", "chunk_mask_world"]
    assert pairs == list(combinations(order, 2)), "the single action is compared at each K"
    ours = [(each.less, each.more) for each in found if each.chunk == 10 and not each.claimed]
    assert ours == [("chunk_mask_world", "head"), ("chunk_mask_world", "augmented")]
    assert len(found) == 2 * (len(pairs) + len(ours)), "as many with K = 5"


def test_a_difference_has_newcombes_interval() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 873), table II, method 10: 56/70 against 48/80.
    difference, low, high = interval_of_difference((48, 80), (56, 70))
    assert (difference, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((20.0, 5.0, 33.0), "holds"),
        ((-20.0, -33.0, -5.0), "contradicted"),
        ((10.0, -4.0, 22.0), "not decided"),
        ((None, None, None), "not measured"),
    ],
)
def test_the_interval_decides_the_verdict(interval: tuple[float | None, ...], verdict: str) -> None:
    assert Compared("lift", 5, "chunk", "chunk_mask", True, *interval).verdict == verdict
    ours = {"holds": "better", "contradicted": "worse"}.get(verdict, verdict)
    assert Compared("lift", 5, "chunk_mask_world", "head", False, *interval).verdict == ours
