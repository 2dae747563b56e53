"""`worldvla inspect`: the order of the data, so that anybody can check."""

from __future__ import annotations

import json

from cluster.inspect.config import InspectPlanConfig
from cluster.invocation import Invocation
from data.config import DataConfig
from pretrain.config import TrainerConfig


def inspect_plan(config: InspectPlanConfig, call: Invocation) -> None:
    """`worldvla inspect plan`: the window ids of every data-parallel rank in one step."""
    from data.stream.packing_advice import packing_advice
    from data.stream.setup import make_plan

    plan = make_plan(
        DataConfig(url=config.url, history=config.history, chunk=config.chunk),
        TrainerConfig(global_batch=config.global_batch, sequence_length=config.sequence_length),
        config.seed,
    )
    found = plan.ids_of_ranks(config.step, config.ranks)
    if call.json:
        print(json.dumps({"ranks": found}))
        return
    for rank, ids in enumerate(found):
        call.console.print(f"  rank {rank}: {len(ids)} windows: {' '.join(map(str, ids))}")
    epochs = ", ".join(f"{name} {passed:.3f}" for name, passed in plan.epochs(config.step).items())
    call.console.print(f"  epochs before this step: {epochs}")
    call.console.print(f"  {packing_advice(plan)}")
