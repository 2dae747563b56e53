"""Captured steps: the tokens of uncaptured ones, few captures, and what happens when a capture fails."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import pytest
import torch

from pretrain.model.attention.cached import CachedMask
from pretrain.model.decoding.buffers import AnswerBuffers, BufferPool, pool_of
from pretrain.model.decoding.graphs import CudaGraphs, GraphedStep, Graphs
from pretrain.model.decoding.prompts import padded_width
from pretrain.model.decoding_session import DecodingSession
from pretrain.model.generate import Order, chunk_answer, decode_action_chunk
from pretrain.model.generate_images import Guidance, decode_images
from pretrain.model.sampling import Sampling
from pretrain.model.transformer import Transformer
from tests.support.decoding import dream_prompt, prompt_of, small_model
from tests.support.taped_graphs import TapedGraphs

HOT = Sampling(temperature=2.0, seed=5)
CPU = torch.device("cpu")


@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("changes", [{}, {"action_mask": False}, {"key_value_heads": 2}])
def test_captured_chunks_are_those_of_uncaptured_steps(order: Order, changes: dict[str, Any]) -> None:
    model, backend = small_model(**changes), TapedGraphs()
    graphs, given = Graphs(backend), {2: 10_100}
    acted = [*prompt_of(2, 3)[:-1], *dream_prompt(7, 2)[1:-1], *prompt_of(3, 2)[1:]]
    for prompts in ([prompt_of(0, 5), acted], [prompt_of(1, 9, images=2), dream_prompt(4, 6)]):
        for sampling in (Sampling(), HOT, Sampling(2.0, seed=6)):
            found, expected = (
                decode_action_chunk(model, prompts, 3, sampling, order, width=60, given=given, graphs=each)
                for each in (graphs, "off")
            )
            np.testing.assert_array_equal(found, expected)
    # Greedy and sampled; steps with and without a choice, and those of two tokens between dependent blocks.
    dependent = not changes.get("action_mask", True) and order != "token"
    assert len(backend.tapes) == 2 * (3 if dependent else 2)
    passes = 7 * 3 + 2 if dependent else {"parallel": 7, "block": 7 * 3, "token": 9 * 3 - 2}[order]
    assert backend.replays == 6 * passes
    assert min(map(len, backend.tapes)) > 50, "little was recorded"


@pytest.mark.parametrize("guided", [True, False])
def test_captured_images_are_those_of_uncaptured_steps(guided: bool) -> None:
    model, backend = small_model(), TapedGraphs()
    graphs, sampling = Graphs(backend), Sampling(2.0, top_k=50, seed=1)
    for texts in ((6, 4), (2, 5)):
        prompts = [dream_prompt(3, text) for text in texts]
        guidance = Guidance(3.0, [prompt_of(3, text) for text in texts]) if guided else None
        found, expected = (
            decode_images(
                model, prompts, 3, 2, 64, sampling=sampling, guidance=guidance, images=2, graphs=each
            )
            for each in (graphs, "off")
        )
        np.testing.assert_array_equal(found, expected)
    # After the image's head, a code, a code and a line break, and those with the next image's head.
    assert len(backend.tapes) == 4
    assert backend.replays == 2 * 2 * 6


def test_another_answer_of_the_same_shape_is_decoded_by_the_same_graphs() -> None:
    model, backend = small_model(), TapedGraphs()
    graphs = Graphs(backend)
    for text in (3, 8, 20):  # prompts of these lengths share a capacity
        decode_action_chunk(model, [prompt_of(text, text)], 3, graphs=graphs)
    assert (len(backend.tapes), backend.replays) == (1, 3 * 7)
    decode_action_chunk(model, [prompt_of(0, 60)], 3, graphs=graphs)
    assert len(backend.tapes) == 2, "another capacity"
    decode_action_chunk(model, [prompt_of(0, 9)], 3, graphs=graphs)
    assert len(backend.tapes) == 2


def test_weights_that_moved_are_captured_again() -> None:
    model, backend = small_model(), TapedGraphs()
    prompts, graphs = [prompt_of(0, 5)], Graphs(backend)
    decode_action_chunk(model, prompts, 3, graphs=graphs)
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight))
    changed = decode_action_chunk(model, prompts, 3, graphs=graphs)
    assert len(backend.tapes) == 1, "weights that changed in place are read where they are"
    np.testing.assert_array_equal(changed, decode_action_chunk(model, prompts, 3))
    model.load_state_dict(small_model(scale=9).state_dict(), assign=True)
    moved = decode_action_chunk(model, prompts, 3, graphs=graphs)
    assert len(backend.tapes) == 2
    np.testing.assert_array_equal(moved, decode_action_chunk(model, prompts, 3, graphs="off"))


class Refusing(TapedGraphs):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        raise self._error


def test_a_capture_that_fails_is_told_once_and_decoding_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model, prompts = small_model(), [prompt_of(0, 5)]
    backend = Refusing(RuntimeError("operation not permitted\n when stream is capturing"))
    graphs = Graphs(backend)
    with caplog.at_level(logging.WARNING):
        for order in get_args(Order):
            found = decode_action_chunk(model, prompts, 3, HOT, order, graphs=graphs)
            np.testing.assert_array_equal(found, decode_action_chunk(model, prompts, 3, HOT, order))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "without CUDA graphs" in told[0]
    assert "operation not permitted when stream is capturing" in told[0]
    assert backend.warmed_up == 1


def test_errors_of_a_step_itself_are_raised() -> None:
    class Broken(TapedGraphs):
        def warm_up(self, run: Callable[[], None]) -> None:
            raise RuntimeError("out of memory")

    for backend, error in ((Broken(), RuntimeError), (Refusing(TypeError("no such kernel")), TypeError)):
        with pytest.raises(error, match=r"out of memory|no such kernel"):
            decode_action_chunk(small_model(), [prompt_of(0, 5)], 3, graphs=Graphs(backend))


def test_a_step_that_waits_for_the_device_is_not_taken_for_one_that_can_be_captured() -> None:
    step = GraphedStep((1,), CPU, Graphs(TapedGraphs()))
    with pytest.raises(AssertionError, match="makes the host wait"):
        step(lambda inputs: inputs.item(), torch.tensor([3]))


def test_inputs_are_copied_to_where_the_step_reads_them() -> None:
    backend, seen, out = TapedGraphs(), [], torch.zeros(2, dtype=torch.int64)
    step = GraphedStep((2,), CPU, Graphs(backend))

    def double(inputs: torch.Tensor) -> None:
        seen.append(inputs.data_ptr())
        out.copy_(inputs * 2)

    for values in ([1, 2], [3, 4], [5, 6]):
        step(double, torch.tensor(values))
        assert out.tolist() == [2 * value for value in values]
    assert set(seen) == {step.inputs.data_ptr()}
    assert len(seen) == 3, "two warm-ups and a capture: replays do not call it"


def test_two_sessions_at_a_time_share_no_buffers() -> None:
    model, answer = small_model(), chunk_answer(2, 7, {})
    decode_action_chunk(model, [prompt_of(2, 5)], 2)  # leaves buffers for one of them
    with (
        DecodingSession(model, [prompt_of(0, 5)], answer) as first,
        DecodingSession(model, [prompt_of(1, 5)], answer) as second,
    ):
        hidden = first.forward([0]), second.forward([0])
    for number, found in enumerate(hidden):
        with DecodingSession(model, [prompt_of(number, 5)], answer) as alone:
            assert torch.equal(alone.forward([0]), found)


def test_what_an_earlier_answer_left_does_not_reach_the_next() -> None:
    model, prompts = small_model(), [prompt_of(0, 5)]
    graphs = Graphs(TapedGraphs())
    expected = decode_action_chunk(model, prompts, 3, HOT, graphs=graphs)
    (buffers,) = pool_of(model)._idle.values()
    buffers.cache._entries.fill_(torch.nan)  # as weights that overflow leave it
    np.testing.assert_array_equal(decode_action_chunk(model, prompts, 3, HOT, graphs=graphs), expected)
    np.testing.assert_array_equal(decode_action_chunk(model, prompts, 3, HOT, graphs="off"), expected)


def test_results_are_copies() -> None:
    model = small_model()
    first = decode_action_chunk(model, [prompt_of(0, 5)], 3)
    kept = first.copy()
    assert (decode_action_chunk(model, [prompt_of(1, 5)], 3) != first).any()
    np.testing.assert_array_equal(first, kept)


def test_few_shapes_are_kept_and_those_in_use_longest() -> None:
    model, pool = small_model(), BufferPool()
    with DecodingSession(model, [prompt_of(0, 5)], chunk_answer(2, 7, {})) as session:
        shape = session._buffers.shape
    made = [pool.take(model, shape._replace(batch=batch)) for batch in range(1, 12)]
    for buffers in [*made, made[5]]:
        pool.give(buffers)
    assert [kept.batch for kept in pool._idle] == [4, 5, 7, 8, 9, 10, 11, 6]
    assert pool.take(model, made[5].shape) is made[5]
    assert pool.take(model, made[0].shape) is not made[0]


def test_buffers_are_freed_with_their_model() -> None:
    freed: list[bool] = []
    model: Transformer | None = small_model()
    assert model is not None
    decode_action_chunk(model, [prompt_of(0, 5)], 2, graphs=Graphs(TapedGraphs()))
    (buffers,) = pool_of(model)._idle.values()
    assert isinstance(buffers, AnswerBuffers)
    weakref.finalize(buffers, lambda: freed.append(True))
    del buffers, model
    gc.collect()
    assert freed == [True]


def test_sessions_work_inside_and_outside_inference_mode() -> None:
    model, prompts = small_model(), [prompt_of(0, 5)]
    expected = decode_action_chunk(model, prompts, 2)  # in inference mode
    with DecodingSession(model, prompts, chunk_answer(2, 7, {})) as session:
        assert not session.forward([0, 9]).requires_grad
    np.testing.assert_array_equal(decode_action_chunk(model, prompts, 2), expected)


@pytest.mark.parametrize(
    ("least", "device", "expected"),
    [(65, "cuda", 128), (64, "cuda", 64), (200, "cuda", 250), (250, "cuda", 250), (65, "cpu", 65)],
)
def test_prompts_are_padded_to_few_widths_on_a_gpu(least: int, device: str, expected: int) -> None:
    assert padded_width(least, 250, torch.device(device)) == expected


class FakeCuda:
    """Records what is called on torch.cuda, and keeps the current stream as torch does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.current = "main"
        self._error = error
        made = type("S", (), {"wait_stream": lambda _, other: self.calls.append(f"side waits for {other}")})
        main = type(
            "M",
            (),
            {
                "wait_stream": lambda *_: self.calls.append("main waits for side"),
                "__str__": lambda _: self.current,
            },
        )
        for name, value in {
            "Stream": lambda device: made(),
            "current_stream": lambda device: main(),
            "graph_pool_handle": lambda: (0, 7),
            "stream": self.stream,
            "CUDAGraph": lambda: type("G", (), {"replay": lambda _: self.calls.append("replay")})(),
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.current = self.current, "side"
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: object, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        self.current = "side"
        self.calls.append(f"capture {pool} {capture_error_mode}")
        yield
        if self._error is not None:
            raise self._error  # as torch: without leaving its stream
        self.calls.append("captured")


def test_cuda_graphs_are_warmed_up_and_captured_on_a_stream_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    step = GraphedStep((1,), CPU, Graphs(CudaGraphs(torch.device("cuda"))))
    for value in (1, 2):
        step(lambda inputs: cuda.calls.append(f"run on {cuda.current}"), torch.tensor([value]))
    assert cuda.calls == [
        "side waits for main",
        *["run on side"] * 3,
        "main waits for side",
        "capture (0, 7) thread_local",
        "run on side",
        "captured",
        *["replay"] * 2,
    ]
    assert cuda.current == "main"


def test_after_a_failed_capture_steps_run_on_the_stream_of_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch, RuntimeError("capture was invalidated"))
    graphs = Graphs(CudaGraphs(torch.device("cuda")))
    step = GraphedStep((1,), CPU, graphs)
    step(lambda inputs: cuda.calls.append(f"run on {cuda.current}"), torch.tensor([1]))
    assert graphs.failure == "capture was invalidated"
    assert cuda.calls[-1] == "run on main"


def test_models_on_a_gpu_are_captured_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    pool = BufferPool()
    assert pool.graphs(CPU) is None
    graphs = pool.graphs(torch.device("cuda"))
    assert isinstance(graphs, Graphs)
    assert pool.graphs(torch.device("cuda")) is graphs


def test_ids_are_chosen_by_logits_that_are_not_rounded_to_bf16() -> None:
    model = small_model(scale=1).bfloat16()
    with DecodingSession(model, [prompt_of(0, 5)], chunk_answer(2, 7, {})) as session:
        hidden = session.forward([0, 9])
        found = session.logits(hidden, 10_006, 10_262)
    assert hidden.dtype == torch.bfloat16
    expected = hidden.double() @ model.lm_head.weight[10_006:10_262].double().T
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    assert len(found[0, 0].unique()) > len(found[0, 0].bfloat16().unique()), "rounding would tie ids"


@pytest.mark.parametrize("captured", [True, False])
def test_hidden_states_come_from_passes_of_the_shapes_of_decoding(
    monkeypatch: pytest.MonkeyPatch, captured: bool
) -> None:
    """The comparison of batch sizes before an evaluation would else try other kernels than are used."""
    lengths: list[int] = []
    attend = CachedMask.attend

    def noting(self: CachedMask, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        lengths.append(key.shape[2])
        return attend(self, query, key, value)

    monkeypatch.setattr(CachedMask, "attend", noting)
    graphs = Graphs(TapedGraphs()) if captured else "off"
    model, prompt = small_model(), prompt_of(0, 5)
    with DecodingSession(model, [prompt], chunk_answer(2, 7, {}), graphs=graphs) as session:
        session.forward([0, 9])
    assert set(lengths) == {64 if captured else len(prompt) + 2}
    decode_action_chunk(model, [prompt], 2, graphs=graphs)
    assert (set(lengths) == {64}) == captured
