"""The network against Hugging Face's Chameleon, the loss against a naive one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from data.errors import InputError
from data.tokens.vocabulary import (
    ACTION_BIN_END,
    ACTION_BIN_START,
    ACTION_START,
    IMAGE_CODE_END,
)
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.loss import LabelKind, LossSettings, label_kinds, label_weights
from pretrain.model.transformer import Transformer, initialise

SMALL = ModelConfig(
    vocabulary_size=16_384,
    hidden_size=32,
    ffn_size=48,
    layers=2,
    heads=4,
    max_positions=256,
    dropout=0.0,
)


def small_model(**changes: object) -> Transformer:
    model = Transformer(ModelConfig(**{**SMALL.__dict__, **changes}))
    initialise(model, seed=3)
    with torch.no_grad():  # far from uniform, so that greedy choices are clear
        model.lm_head.weight.mul_(20)
    return model.eval()


def test_logits_equal_hugging_face_chameleon() -> None:
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

    vocabulary_map = {"<image>": 8711, "IMGIMGA" + "Z": 4}
    config = ChameleonConfig(
        vocab_size=SMALL.vocabulary_size,
        hidden_size=SMALL.hidden_size,
        intermediate_size=SMALL.ffn_size,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.heads,
        max_position_embeddings=SMALL.max_positions,
        vocabulary_map=vocabulary_map,
        vq_config=ChameleonVQVAEConfig(
            embed_dim=8, num_embeddings=16, latent_channels=8, base_channels=32, channel_multiplier=[1, 1]
        ),
    )
    torch.manual_seed(0)
    theirs = ChameleonForConditionalGeneration(config).eval()
    ours = Transformer(SMALL).eval()
    weights = dict(theirs.state_dict())
    with torch.no_grad():
        for name, tensor in weights.items():  # norms start as ones: make them matter
            if "norm" in name and "vqmodel" not in name:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    assert weights["model.layers.0.self_attn.q_norm.weight"].shape == (SMALL.heads, SMALL.head_size)
    ours.load_state_dict({n: t for n, t in weights.items() if "vqmodel" not in n}, strict=True)
    tokens = torch.randint(IMAGE_CODE_END + 600, SMALL.vocabulary_size, (2, 40))
    positions = torch.arange(40).expand(2, 40)
    with torch.no_grad():
        # Without its last step, which hides image codes from the output: the world model needs them.
        expected = theirs.lm_head(theirs.model(input_ids=tokens).last_hidden_state)
        mask = packed_mask(torch.ones_like(tokens), torch.zeros_like(tokens), SMALL, tokens.device)
        found = ours(tokens, positions, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_loss_equals_a_naive_one_and_its_gradient() -> None:
    model = small_model(vocabulary_size=16_384)
    torch.manual_seed(1)
    hidden = torch.randn(1500, SMALL.hidden_size, requires_grad=True)
    labels = torch.randint(0, SMALL.vocabulary_size, (1500,))
    settings = LossSettings(image_weight=0.04, z_loss=1e-2)
    weights = label_weights(labels, settings)
    normaliser = torch.stack([weights.sum(), torch.tensor(1500.0)])

    logits = hidden @ model.lm_head.weight.T
    entropy = functional.cross_entropy(logits, labels, reduction="none")
    naive = (weights * entropy).sum() / weights.sum() + 1e-2 * logits.logsumexp(1).square().mean()
    expected = torch.autograd.grad(naive, (hidden, model.lm_head.weight))

    loss, sums = model.lm_head(hidden, labels, normaliser, settings)
    found = torch.autograd.grad(loss, (hidden, model.lm_head.weight))

    torch.testing.assert_close(loss, naive, atol=1e-5, rtol=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    kinds = label_kinds(labels)
    for kind in LabelKind:
        chosen = kinds == kind
        assert sums[kind, 1] == chosen.sum()
        torch.testing.assert_close(sums[kind, 0], entropy[chosen].sum(), atol=1e-2, rtol=1e-5)
        assert sums[kind, 2] == (logits.argmax(1) == labels)[chosen].sum()


def test_kinds_and_weights_follow_the_id_ranges() -> None:
    ids = [3, 4, 8195, 8196, ACTION_BIN_START, ACTION_BIN_END - 1, ACTION_BIN_END, ACTION_START]
    labels = torch.tensor(ids)
    kinds = [LabelKind(int(k)).name for k in label_kinds(labels)]
    assert kinds == ["STRUCTURE", "IMAGE", "IMAGE", "STRUCTURE", "ACTION", "ACTION", "STRUCTURE", "STRUCTURE"]
    weights = label_weights(labels, LossSettings())
    assert weights.tolist() == pytest.approx([1, 0.04, 0.04, 1, 1, 1, 1, 1])


def test_initial_weights_depend_on_name_and_seed_only() -> None:
    first, second, other = (Transformer(SMALL) for _ in range(3))
    initialise(first, 1)
    torch.manual_seed(99)
    initialise(second, 1)
    initialise(other, 2)
    for (name, a), (_, b), (_, c) in zip(
        first.named_parameters(), second.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert "norm" in name or not torch.equal(a, c), name


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match=r"hidden_size=32 over model\.heads=5"):
        Transformer(ModelConfig(**{**SMALL.__dict__, "heads": 5}))
