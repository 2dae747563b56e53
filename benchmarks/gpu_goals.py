"""The goals on a GPU, read from what the parts of `benchmarks.gpu` have written.

| goal | read from |
|---|---|
| attention at 0.9 of causal FlashAttention, 8,192 tokens | `attention_*`: best `causal` of each layout |
| and 5 x dense-mask attention | the same: best `dense`, packed samples |
| step of 7B and 1B at 53 % MFU counting causal attention | `step_*`: best `mfu` of the most layers |
| and at 60 % counting full attention | the same: best `mfu_full` |
| chunk of K = 5 in parallel at 20 x token by token | `decode`: `token, eager` by `parallel` |
| imports and weights ready in 60 s | `start_up`: part `imports to weights` |

Token by token is plain generation with a cache, each kernel launched by the host; beside it stands the ratio
to token by token as CUDA graphs, which 7 passes in place of 43 bound at about 6.

Each is met, missed by how much, or not measured; nothing that a CPU measured counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
TOKENS, CHUNK, MODELS = 8192, "K=5", ("7b", "1b")
_OURS = ("flash", "flex", "flash2")
_LEAST_MFU = {"mfu": ("causal", 53.0), "mfu_full": ("full", 60.0)}
_READY, _READY_SECONDS = "imports to weights", 60.0
_SLOW = "token, eager"

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and what was measured.

    Attributes:
        text: The goal.
        bound: To reach.
        unit: Of the bound.
        value: Measured; None: not measured.
        how: The variant that the value is of.
        lower: Whether the value has to be below the bound instead of at it or above.
    """

    text: str
    bound: float
    unit: str
    value: float | None = None
    how: str = ""
    lower: bool = False

    @property
    def met(self) -> bool | None:
        """None: not measured."""
        if self.value is None:
            return None
        return self.value < self.bound if self.lower else self.value >= self.bound

    @property
    def verdict(self) -> str:
        """`met`, `missed by ...` or `not measured`."""
        if self.value is None:
            return NOT_MEASURED
        gap = abs(self.value - self.bound)
        return "met" if self.met else f"missed by {gap:.2f} {self.unit} ({100 * gap / self.bound:.0f} %)"


def goals(results: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """All goals.

    Args:
        results: JSON of the parts by name; any may be missing or unfinished.
    """
    return [*_attention(results), *_steps(results), _decoding(results), _start(results)]


def rows_of(results: Mapping[str, Mapping[str, Any]], prefix: str) -> list[Mapping[str, Any]]:
    """Rows of all parts whose name begins so and which ran on a GPU."""
    return [
        row
        for name, result in results.items()
        if name.startswith(prefix) and result.get("environment", {}).get("cuda")
        for row in result.get("rows", ())
    ]


def _attention(results: Mapping[str, Mapping[str, Any]]) -> Iterable[Goal]:
    rows = [
        row for row in rows_of(results, "attention") if row["tokens"] == TOKENS and row["attention"] in _OURS
    ]
    for layout, meaning in (("packed", "packed samples"), ("one", "one sample, nearly causal")):
        best = _best([row for row in rows if row["layout"] == layout], "causal")
        text = f"attention, {TOKENS:,} tokens, {meaning}: times causal FlashAttention"
        yield Goal(text, 0.9, "x", *_value(best, "causal", "attention"))
    best = _best([row for row in rows if row["layout"] == "packed"], "dense")
    text = f"attention, {TOKENS:,} tokens, packed samples: times dense-mask attention"
    yield Goal(text, 5.0, "x", *_value(best, "dense", "attention"))


def _steps(results: Mapping[str, Mapping[str, Any]]) -> Iterable[Goal]:
    for model in MODELS:
        for key, (pairs, least) in _LEAST_MFU.items():
            rows = [row for row in rows_of(results, "step") if row["model"] == model and row[key] is not None]
            most = max((row["layers"] for row in rows), default=0)
            best = _best([row for row in rows if row["layers"] == most], key)
            yield Goal(
                f"step of {model}: MFU, {pairs} attention counted", least, "%", *_value(best, key, "variant")
            )


def _decoding(results: Mapping[str, Mapping[str, Any]]) -> Goal:
    """The longest prompt's ratio, that of a policy's observations."""
    text = "7b, chunk of K = 5 in parallel, batch 1: times token by token without CUDA graphs"
    rows = [
        row
        for row in rows_of(results, "decode")
        if (row["model"], row["answer"], row["batch"]) == ("7b", CHUNK, 1)
    ]
    times = {(row["prompt"], row["way"]): row["milliseconds"] for row in rows}
    prompts = [prompt for prompt, way in times if way == "parallel" and (prompt, _SLOW) in times]
    if not prompts:
        return Goal(text, 20.0, "x")
    prompt = max(prompts)
    ours, how = times[prompt, "parallel"], f"prompt of {prompt}"
    if (prompt, "token") in times:
        how += f"; {times[prompt, 'token'] / ours:.1f} x token by token as CUDA graphs"
    return Goal(text, 20.0, "x", times[prompt, _SLOW] / ours, how)


def _start(results: Mapping[str, Mapping[str, Any]]) -> Goal:
    rows = [row for row in rows_of(results, "start_up") if (row["model"], row["part"]) == ("7b", _READY)]
    best = _best(rows, "seconds", min)
    how = "" if best is None else f"{best['layers']}/{best['all_layers']} layers"
    text = "7b: imports, process groups and weights ready"
    return Goal(text, _READY_SECONDS, "s", None if best is None else best["seconds"], how, lower=True)


def _best(rows: Rows, key: str, choose: Callable[..., Any] = max) -> Mapping[str, Any] | None:
    return choose((row for row in rows if row[key] is not None), key=lambda row: row[key], default=None)


def _value(best: Mapping[str, Any] | None, key: str, how: str) -> tuple[float | None, str]:
    return (None, "") if best is None else (best[key], best[how])
