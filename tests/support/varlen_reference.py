"""The varlen kernels in plain torch, one range after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pretrain.model.attention.varlen import VarlenPass


class PlainKernels:
    """`VarlenKernels` on any device in any precision, with a count of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def forward(self, query: Tensor, key: Tensor, value: Tensor, part: VarlenPass) -> tuple[Tensor, Tensor]:
        self.calls.append("forward")
        output, lse = torch.empty_like(query), query.new_empty(query.shape[1], query.shape[0])
        for queries, keys in _ranges(part):
            scores = _scores(query[queries], key[keys], part.causal)
            lse[:, queries] = scores.logsumexp(-1)
            output[queries] = torch.einsum(
                "nqk,knd->qnd", scores.softmax(-1), _per_query_head(value[keys], query)
            )
        return output, lse

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        part: VarlenPass,
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.calls.append("backward")
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        scale = query.shape[-1] ** -0.5
        for queries, keys in _ranges(part):
            q, do = query[queries], gradient[queries]
            k, v = _per_query_head(key[keys], query), _per_query_head(value[keys], query)
            p = (_scores(q, key[keys], part.causal) - lse[:, queries].unsqueeze(-1)).exp()
            delta = (do * output[queries]).sum(-1).T.unsqueeze(-1)
            ds = p * (torch.einsum("qnd,knd->nqk", do, v) - delta) * scale
            of_query[queries] = torch.einsum("nqk,knd->qnd", ds, k)
            of_key[keys] = _per_shared_head(torch.einsum("nqk,qnd->knd", ds, q), key)
            of_value[keys] = _per_shared_head(torch.einsum("nqk,qnd->knd", p, do), value)
        return of_query, of_key, of_value


def _ranges(part: VarlenPass) -> Iterator[tuple[slice, slice]]:
    query_starts, key_starts = part.query_starts.tolist(), part.key_starts.tolist()
    assert len(part.queries) == query_starts[-1]
    assert len(part.keys) == key_starts[-1]
    for number in range(len(query_starts) - 1):
        queries, keys = slice(*query_starts[number : number + 2]), slice(*key_starts[number : number + 2])
        assert 0 < queries.stop - queries.start <= part.max_queries
        assert 0 < keys.stop - keys.start <= part.max_keys
        yield queries, keys


def _scores(query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """[N, Q, K]; causal counts from the ends of both, as flash-attn does from 2.1 on."""
    scores = torch.einsum("qnd,knd->nqk", query, _per_query_head(key, query)) * query.shape[-1] ** -0.5
    if not causal:
        return scores
    queries, keys = len(query), len(key)
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return scores.masked_fill(~visible, float("-inf"))


def _per_query_head(shared: Tensor, query: Tensor) -> Tensor:
    return shared.repeat_interleave(query.shape[1] // shared.shape[1], 1)


def _per_shared_head(gradient: Tensor, shared: Tensor) -> Tensor:
    return gradient.unflatten(1, (shared.shape[1], -1)).sum(2)
