"""Decoding steps captured as CUDA graphs: one launch a step instead of one for each kernel.

A small batch leaves a GPU waiting for the host, which launches some hundreds of kernels in every step. A
captured step is a recording of these launches with the addresses of their tensors. So a step reads and
writes nothing but buffers that stay where they are, its shapes do not change, and the host decides nothing
within it.

Weights must not move either: no graph is made for models that are partitioned (ZeRO-3), offloaded or tensor
parallel, none of which are decoded at all.

`torch.compile(mode="reduce-overhead")` would capture graphs too. It also compiles the whole network once
for each shape (minutes at 7B), checks its guards in every step, and leaves a step uncaptured without an
error where a cache is written in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)
_WARM_UPS = 3

Run = Callable[[], None]


class GraphBackend(Protocol):
    """Records device work, to be repeated with the contents that its tensors have by then."""

    def warm_up(self, run: Run) -> None:
        """Run work that is captured next, so that nothing in it happens for the first time."""
        ...

    def capture(self, run: Run) -> Run:
        """Record work and return the call that repeats it.

        Raises:
            RuntimeError: It cannot be captured.
        """
        ...


class CudaGraphs:
    """CUDA graphs of one device.

    Args:
        device: That the work is for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # One pool for all graphs: none runs beside another, and what they compute is kept in buffers outside.
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Run) -> None:
        """On the stream of the capture, as torch asks for."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def capture(self, run: Run) -> Run:
        """See `GraphBackend.capture`; other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        # A capture that fails may leave its stream the current one: the outer context restores ours.
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            run()
        return graph.replay


class Graphs:
    """The captured steps of a model; after a capture that failed its steps run as they are.

    Args:
        backend: Captures them.

    Attributes:
        failure: Why a capture failed; None: none did.
    """

    def __init__(self, backend: GraphBackend) -> None:
        self._backend = backend
        self.failure: str | None = None

    def capture(self, run: Run) -> Run | None:
        """Warm work up and capture it; None, with a line in the log for the first: it is to run as it is.

        Work may run several times here, so running it again must not change what it leaves behind.
        """
        if self.failure is not None:
            return None
        self._backend.warm_up(run)
        try:
            return self._backend.capture(run)
        except RuntimeError as error:
            self.failure = " ".join(str(error).split())
            _LOG.warning("decoding goes on without CUDA graphs: a step was not captured: %s", self.failure)
            return None


class GraphedStep:
    """A step as a function of small integers, captured when it runs first and replayed from then on.

    Args:
        shape: Of the integers.
        device: Of the step.
        graphs: Captures it.

    Attributes:
        inputs: int64 on the device: the step's own copy, which stays at its address.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, graphs: Graphs) -> None:
        with torch.inference_mode(False):
            self.inputs = torch.zeros(shape, dtype=torch.int64, device=device)
        self._graphs = graphs
        self._replay: Run | None = None

    def __call__(self, step: Callable[[Tensor], object], inputs: Tensor) -> None:
        """Run the step on these inputs.

        Args:
            step: The same in every call, called with `inputs`: only the first call captures it.
            inputs: int64 of the shape, on the device.
        """

        def run() -> None:
            step(self.inputs)

        self.inputs.copy_(inputs)
        if self._replay is None:
            self._replay = self._graphs.capture(run)
        (self._replay or run)()
