from __future__ import annotations

import pytest

from cluster.config import RootConfig
from cluster.resources.run_resources import check_fits, plan_resources
from data.errors import InputError


def run(tensor: int = 2, data: int = 2) -> RootConfig:
    config = RootConfig()
    config.parallel.tensor, config.parallel.data = tensor, data
    return config


def test_training_and_evaluation_use_separate_cpus() -> None:
    config = run()
    config.eval.every, config.eval.workers = 100, 3
    resources = plan_resources(config, gpus_available=0)
    assert (resources.ranks, resources.cpus, resources.gpus) == (4, 7, 0)
    assert resources.per_rank == {"CPU": 1}


def test_without_evaluation_no_cpu_is_reserved_for_it() -> None:
    assert plan_resources(run(), gpus_available=0).cpus == 4


def test_gpus_are_used_where_available_unless_disabled() -> None:
    config = run(1, 2)
    assert plan_resources(config, gpus_available=8).per_rank == {"CPU": 1, "GPU": 1}
    config.cluster.gpus_per_rank = 0
    assert plan_resources(config, gpus_available=8).gpus == 0


def test_too_few_cpus_name_both_numbers() -> None:
    config = run()
    config.cluster.cpus, config.eval.every = 4, 10
    with pytest.raises(InputError, match=r"cluster.cpus offers 4 CPUs .* needs 5 .*4 .* x 1 \+ 1 for eval"):
        plan_resources(config, gpus_available=0)


def test_too_few_gpus_name_both_numbers() -> None:
    with pytest.raises(InputError, match=r"1 GPUs found, the run needs 4"):
        plan_resources(run(), gpus_available=1)


def test_an_existing_cluster_is_checked_after_connecting() -> None:
    config = run()
    config.cluster.address = "auto"
    resources = plan_resources(config, gpus_available=0)
    with pytest.raises(InputError, match=r"Ray at auto offers 2 CPUs to Ray, the run needs 4"):
        check_fits(resources, cpus=2, gpus=0, source="Ray at auto")


@pytest.mark.parametrize(
    ("key", "minimum"),
    [
        ("parallel.tensor", 1),
        ("parallel.data", 1),
        ("cluster.cpus_per_rank", 1),
        ("eval.workers", 1),
        ("cluster.restarts", 0),
        ("cluster.restart_delay", 0),
        ("cluster.node_timeout", 0),
    ],
)
def test_values_below_the_minimum_are_refused(key: str, minimum: int) -> None:
    config = run()
    section, name = key.split(".")
    setattr(getattr(config, section), name, minimum - 1)
    with pytest.raises(InputError, match=f"^{key}={minimum - 1}, expected {minimum} or more"):
        plan_resources(config, gpus_available=0)


def test_the_policy_of_evaluations_uses_separate_gpus() -> None:
    config = RootConfig()
    config.eval.every, config.eval.gpus = 10, 0.5
    config.cluster.gpus_per_rank = 1
    assert plan_resources(config, gpus_available=2).gpus == 2
    with pytest.raises(InputError, match=r"1 GPUs found, the run needs 2 .*one each \+ 1 for evaluation"):
        plan_resources(config, gpus_available=1)
    for name, value in (("gpus", 1.5), ("gpus", -0.5)):
        wrong = RootConfig()
        setattr(wrong.eval, name, value)
        with pytest.raises(InputError, match=f"eval.{name}={value}"):
            plan_resources(wrong, gpus_available=4)
