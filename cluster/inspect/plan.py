"""The order of the data in one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.inspect.config import InspectPlanConfig
from data.config import DataConfig
from data.stream.order.plan import DataPlan
from data.stream.order_choice import OrderReport, report_order
from data.stream.packing_advice import packing_advice
from data.stream.setup import open_setup
from pretrain.config import TrainerConfig


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What each data-parallel rank reads in a step.

    Attributes:
        plan: The order of the data.
        step: Optimiser step, from 0.
        window_ids: Ids of the windows of each rank.
        order: What the order needs of each rank.
    """

    plan: DataPlan
    step: int
    window_ids: list[list[int]]
    order: OrderReport

    def lines(self) -> Iterator[str]:
        """The plan as text."""
        for rank, ids in enumerate(self.window_ids):
            yield f"  rank {rank}: {len(ids)} windows: {' '.join(map(str, ids))}"
        epochs = ", ".join(f"{name} {passed:.3f}" for name, passed in self.plan.epochs(self.step).items())
        yield f"  epochs before this step: {epochs}"
        yield f"  {self.order}"
        if self.order.warning is not None:
            yield f"  {self.order.warning}"
        yield f"  {packing_advice(self.plan)}"


def plan_step(config: InspectPlanConfig) -> StepPlan:
    """The windows of every data-parallel rank in one step.

    Raises:
        InputError: No data set there, or a setting is out of range.
    """
    data = DataConfig(
        url=config.url,
        history=config.history,
        chunk=config.chunk,
        predicted_frames=config.predicted_frames,
        cameras=config.cameras,
        state=config.state,
        mixture=config.mixture,
        variants=config.variants,
        split=config.split,
        memory_megabytes=config.memory_megabytes,
        shuffle=config.shuffle,
        shuffle_episodes=config.shuffle_episodes,
    )
    trainer = TrainerConfig(global_batch=config.global_batch, sequence_length=config.sequence_length)
    setup = open_setup(data, trainer, config.seed)
    plan = setup.plan
    ids = plan.ids_of_ranks(config.step, config.ranks)
    order = report_order(data, plan, setup.datasets, setup.forms, config.ranks)
    return StepPlan(plan, config.step, ids, order)
