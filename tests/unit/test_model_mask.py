"""The action attention mask, against drawings and against its rule spelled out."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from data.tokens.vocabulary import ACTION_END, ACTION_START, END_OF_TURN, IMAGE_END, IMAGE_START
from pretrain.model.attention.choose import packed_mask
from pretrain.model.attention.dense import DenseMask
from pretrain.model.config import ModelConfig
from pretrain.model.mask import dense_mask, mask_from_tokens, mask_vectors

TEXT, BIN = 20_000, 10_100


def drawing(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in mask.tolist()]


def test_answer_blocks_do_not_see_one_another() -> None:
    assert drawing(dense_mask([1] * 7, [0, 0, 1, 1, 2, 2, 0])) == [
        "x......",
        "xx.....",
        "xxx....",
        "xxxx...",
        "xx..x..",
        "xx..xx.",
        "xxxxxxx",
    ]


def test_samples_of_one_sequence_and_padding_are_apart() -> None:
    assert drawing(dense_mask([1, 1, 2, 2, 0], [0, 1, 0, 1, 0])) == [
        "x....",
        "xx...",
        "..x..",
        "..xx.",
        "....x",
    ]


def test_vectors_of_an_action_sample() -> None:
    sample = [TEXT, IMAGE_START, IMAGE_END, END_OF_TURN]
    sample += [ACTION_START, BIN, ACTION_END] * 2 + [END_OF_TURN]
    segments, blocks = mask_vectors(sample)
    assert segments.tolist() == [1] * 11
    assert blocks.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0]


def test_vectors_of_a_world_sample_and_of_a_history_action() -> None:
    image, action = [IMAGE_START, IMAGE_END], [ACTION_START, BIN, ACTION_END]
    _, blocks = mask_vectors([TEXT, *image, *action, END_OF_TURN, *image, END_OF_TURN])
    assert blocks.tolist() == [0, 0, 0, -1, -1, -1, 0, 0, 0, 0]
    _, blocks = mask_vectors([*image, *action, *action, *image, *action, *action])
    assert blocks.tolist() == [0, 0, -1, -1, -1, -2, -2, -2, 0, 0, 1, 1, 1, 2, 2, 2]


def published_rule(tokens: list[int]) -> list[list[bool]]:
    """Causal; a block that starts after the last image hides all earlier blocks."""
    last_image = max((i for i, t in enumerate(tokens) if t == IMAGE_END), default=-1)
    spans: list[range] = []
    start = None
    for place, token in enumerate(tokens):
        if token == ACTION_START:
            if start is not None:
                spans.append(range(start, place))
            start = place
        elif token == ACTION_END and start is not None:
            spans.append(range(start, place + 1))
            start = None
    if start is not None:
        spans.append(range(start, len(tokens)))
    mask = [[key <= query for key in range(len(tokens))] for query in range(len(tokens))]
    for number, span in enumerate(spans):
        if span.start > last_image:
            for query in span:
                for earlier in spans[:number]:
                    for key in earlier:
                        mask[query][key] = False
    return mask


@given(st.lists(st.sampled_from([TEXT, IMAGE_START, IMAGE_END, ACTION_START, ACTION_END, BIN, END_OF_TURN])))
def test_mask_from_tokens_is_the_published_rule(tokens: list[int]) -> None:
    assert mask_from_tokens(tokens).tolist() == published_rule(tokens)


def masked(segments: torch.Tensor, blocks: torch.Tensor, **options: bool) -> torch.Tensor:
    config = ModelConfig(attention="sdpa", **options)  # type: ignore[arg-type]
    mask = packed_mask(segments, blocks, config, torch.device("cpu"))
    assert isinstance(mask, DenseMask)
    return mask.dense


def test_history_actions_can_be_made_visible() -> None:
    segments, blocks = torch.ones(1, 4, dtype=torch.int64), torch.tensor([[-1, 0, 1, 2]])
    assert drawing(masked(segments, blocks)[0, 0]) == ["x...", "xx..", ".xx.", ".x.x"]
    visible = masked(segments, blocks, history_actions_visible=True)
    assert drawing(visible[0, 0]) == ["x...", "xx..", "xxx.", "xx.x"]


def test_packed_mask_and_the_ablation_without_it() -> None:
    segments, blocks = torch.tensor([[1, 1, 1, 2]]), torch.tensor([[0, 1, 2, 0]])
    packed = masked(segments, blocks)
    assert packed.shape == (1, 1, 4, 4)
    assert drawing(packed[0, 0]) == ["x...", "xx..", "x.x.", "...x"]
    causal = masked(segments, blocks, action_mask=False)
    assert drawing(causal[0, 0]) == ["x...", "xx..", "xxx.", "...x"]
