from __future__ import annotations

import pytest

from cluster.config import RootConfig
from cluster.resources.placement import check_fits, place
from data.errors import InputError


def run(tensor: int = 2, data: int = 2) -> RootConfig:
    config = RootConfig()
    config.parallel.tensor, config.parallel.data = tensor, data
    return config


def test_training_and_evaluation_have_cpus_of_their_own() -> None:
    config = run()
    config.eval.every, config.eval.workers = 100, 3
    placement = place(config, gpus_found=0)
    assert (placement.ranks, placement.cpus, placement.gpus) == (4, 7, 0)
    assert placement.rank_resources == {"CPU": 1}


def test_without_evaluation_no_cpu_is_kept_for_it() -> None:
    assert place(run(), gpus_found=0).cpus == 4


def test_gpus_are_taken_where_there_are_some_unless_refused() -> None:
    config = run(1, 2)
    assert place(config, gpus_found=8).rank_resources == {"CPU": 1, "GPU": 1}
    config.cluster.gpus_per_rank = 0
    assert place(config, gpus_found=8).gpus == 0


def test_too_few_cpus_name_both_numbers() -> None:
    config = run()
    config.cluster.cpus, config.eval.every = 4, 10
    with pytest.raises(InputError, match=r"cluster.cpus offers 4 CPUs .* needs 5 .*4 .* x 1 \+ 1 for eval"):
        place(config, gpus_found=0)


def test_too_few_gpus_name_both_numbers() -> None:
    with pytest.raises(InputError, match=r"1 GPUs found, the run needs 4"):
        place(run(), gpus_found=1)


def test_an_existing_cluster_is_counted_after_it_was_reached() -> None:
    config = run()
    config.cluster.address = "auto"
    placement = place(config, gpus_found=0)
    with pytest.raises(InputError, match=r"Ray at auto offers 2 CPUs to Ray, the run needs 4"):
        check_fits(placement, cpus=2, gpus=0, source="Ray at auto")


@pytest.mark.parametrize("key", ["parallel.tensor", "parallel.data", "cluster.cpus_per_rank", "eval.workers"])
def test_sizes_below_one_are_refused(key: str) -> None:
    config = run()
    section, name = key.split(".")
    setattr(getattr(config, section), name, 0)
    with pytest.raises(InputError, match=f"{key}=0, expected 1 or more"):
        place(config, gpus_found=0)


def test_the_policy_of_evaluations_has_gpus_of_its_own() -> None:
    config = RootConfig()
    config.eval.every, config.eval.gpus = 10, 0.5
    config.cluster.gpus_per_rank = 1
    assert place(config, gpus_found=2).gpus == 2
    with pytest.raises(InputError, match=r"1 GPUs found, the run needs 2 .*one each \+ 1 for evaluation"):
        place(config, gpus_found=1)
    for name, value in (("gpus", 1.5), ("gpus", -0.5)):
        wrong = RootConfig()
        setattr(wrong.eval, name, value)
        with pytest.raises(InputError, match=f"eval.{name}={value}"):
            place(wrong, gpus_found=4)
