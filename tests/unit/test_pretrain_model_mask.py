"""The action attention mask, against drawings and against a literal implementation of its rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokens.image_block import image_block
from data.tokens.vocabulary import ACTION_END, ACTION_START, END_OF_TURN, IMAGE_END, IMAGE_START
from pretrain.model.attention.choose import packed_mask
from pretrain.model.attention.dense import DenseMask
from pretrain.model.config import ModelConfig
from pretrain.model.mask import dense_mask, mask_from_tokens, mask_vectors
from tests.support.reference_samples import Sample, action_sample, world_sample

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


def test_samples_and_padding_do_not_see_one_another() -> None:
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
    """Causal; a block that starts after the last image hides all earlier blocks.

    What starts and does not end, ends with the sample.
    """
    last_image = -1
    for place, token in enumerate(tokens):
        last_image = len(tokens) if token == IMAGE_START else place if token == IMAGE_END else last_image
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


@settings(deadline=None)
@given(st.lists(st.sampled_from([TEXT, IMAGE_START, IMAGE_END, ACTION_START, ACTION_END, BIN, END_OF_TURN])))
def test_mask_from_tokens_is_the_published_rule(tokens: list[int]) -> None:
    assert mask_from_tokens(tokens).tolist() == published_rule(tokens)


def test_truncated_image_is_the_last_image() -> None:
    action = [ACTION_START, BIN, ACTION_END]
    sample = [IMAGE_START, IMAGE_END, *action, *action, END_OF_TURN, IMAGE_START, TEXT]
    assert mask_vectors(sample)[1].tolist() == [0, 0, -1, -1, -1, -2, -2, -2, 0, 0, 0]
    assert torch.equal(mask_from_tokens(sample), torch.ones(11, 11).tril().bool())


def raw_samples() -> dict[str, Sample]:
    """WorldVLA's samples as in the training stream, at 32 px."""
    text, bins = np.arange(20_000, 20_009), np.arange(10_006, 10_041).reshape(5, 7)
    image = image_block(np.arange(4).reshape(2, 2), pixels=32)
    return {
        "action": action_sample(text, [image, image], bins),
        "one frame": action_sample(text, [image], bins[:1]),
        "no image": action_sample(text, [], bins),
        "world": world_sample(text, image, bins[0], image),
    }


@pytest.mark.parametrize("kind", ["action", "one frame", "no image", "world"])
def test_raw_samples_and_all_their_prefixes_follow_the_published_rule(kind: str) -> None:
    sample = raw_samples()[kind]
    for length in range(1, len(sample) + 1):
        tokens = sample.tokens[:length].tolist()
        assert mask_from_tokens(tokens).tolist() == published_rule(tokens), length
    # The vectors of training equal those of the raw token list.
    vectors = dense_mask(np.ones(len(sample), np.int32), sample.blocks)
    assert torch.equal(vectors, mask_from_tokens(sample.tokens))


def test_samples_without_actions_and_empty_ones_are_causal() -> None:
    for tokens in ([], [TEXT], [TEXT] * 4, [IMAGE_START, IMAGE_END, END_OF_TURN]):
        assert torch.equal(mask_from_tokens(tokens), torch.ones(len(tokens), len(tokens)).tril().bool())


def test_the_last_token_sees_everything() -> None:
    for sample in raw_samples().values():
        assert sample.tokens[-1] == END_OF_TURN
        assert mask_from_tokens(sample.tokens)[-1].all()


def masked(segments: torch.Tensor, blocks: torch.Tensor, **options: bool) -> torch.Tensor:
    config = ModelConfig(attention="sdpa", **options)  # type: ignore[arg-type]
    mask = packed_mask(segments, blocks, config, torch.device("cpu"))
    assert isinstance(mask, DenseMask)
    return mask.dense


def test_history_actions_can_be_visible() -> None:
    segments, blocks = torch.ones(1, 4, dtype=torch.int64), torch.tensor([[-1, 0, 1, 2]])
    assert drawing(masked(segments, blocks)[0, 0]) == ["x...", "xx..", ".xx.", ".x.x"]
    visible = masked(segments, blocks, history_actions_visible=True)
    assert drawing(visible[0, 0]) == ["x...", "xx..", "xxx.", "xx.x"]


def test_history_actions_mask_is_as_in_the_docstring() -> None:
    segments, blocks = torch.ones(1, 7, dtype=torch.int64), torch.tensor([[0, -1, -1, 0, 1, 1, 0]])
    published = drawing(masked(segments, blocks)[0, 0])
    assert published[4:] == ["x..xx..", "x..xxx.", "xxxxxxx"]
    causal = ["x" * seen + "." * (7 - seen) for seen in range(1, 8)]
    assert published[:4] == causal[:4]
    assert drawing(masked(segments, blocks, history_actions_visible=True)[0, 0]) == causal


def test_packed_mask_and_the_ablation_without_it() -> None:
    segments, blocks = torch.tensor([[1, 1, 1, 2]]), torch.tensor([[0, 1, 2, 0]])
    packed = masked(segments, blocks)
    assert packed.shape == (1, 1, 4, 4)
    assert drawing(packed[0, 0]) == ["x...", "xx..", "x.x.", "...x"]
    causal = masked(segments, blocks, action_mask=False)
    assert drawing(causal[0, 0]) == ["x...", "xx..", "xxx.", "...x"]
