"""A control step in which positions are computed once for each substep, with the same states to the last bit.

In each of the 25 substeps of a control step robosuite calls `mj_forward`, its controller calls it again and
`mj_step` begins with it: positions and velocities are the same all three times, only the torques differ. What
depends on those alone (kinematics, inertia, collisions, constraints) is kept from the first call.
Accelerations are solved for three times as before: each solution starts from the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def positions_computed_once(sim: Any) -> Iterator[None]:
    """Inside the block `sim.forward` and `sim.step` keep what the first `forward` of a substep has computed.

    Args:
        sim: robosuite's `MjSim`. Inside the block only its `step` may change positions and velocities. Models
            with the integrator RK4, which computes positions by itself, are stepped as ever.
    """
    import mujoco

    # The stubs of MuJoCo name none of its functions.
    functions: Any = mujoco
    model, data = sim.model._model, sim.data._data
    if model.opt.integrator == functions.mjtIntegrator.mjINT_RK4:
        yield
        return
    velocities = int(functions.mjtStage.mjSTAGE_VEL)
    computed = False

    def forward() -> None:
        nonlocal computed
        if computed:
            functions.mj_forwardSkip(model, data, velocities, 0)
        else:
            functions.mj_forward(model, data)
            computed = True

    def step() -> None:
        nonlocal computed
        if computed:
            functions.mj_checkPos(model, data)
            functions.mj_checkVel(model, data)
            functions.mj_step2(model, data)
        else:
            functions.mj_step(model, data)
        computed = False

    sim.forward, sim.step = forward, step
    try:
        yield
    finally:
        del sim.forward, sim.step
