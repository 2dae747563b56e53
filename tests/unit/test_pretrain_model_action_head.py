"""The continuous action head against torch's own encoder, its loss, and its prediction in one pass."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from data.contracts import PackedBatch
from data.errors import InputError
from data.stream.samples import action_blocks
from data.tokens.action import DEFAULT_RANGES, decode, normalise
from data.tokens.vocabulary import ACTION_BIN_END, ACTION_BIN_START, ACTION_START, END_OF_TURN, IGNORED_LABEL
from pretrain.checks import check_training
from pretrain.config import TrainingConfig
from pretrain.model.action_prompts import ActionInputs
from pretrain.model.config import ActionHeadConfig
from pretrain.model.generate import decode_action_chunk
from pretrain.model.generate_continuous import predict_actions
from pretrain.model.loss import LabelKind, LossSettings, Total, means
from pretrain.model.mask import mask_vectors
from pretrain.model.parameters import is_matrix, sharded_dimension
from pretrain.model.transformer import Transformer
from pretrain.parallel.batch import MicroBatch, check_batch
from tests.support.decoding import prompt_of, small_model
from tests.support.plain_action_head import hidden_states, plain_head_of, plain_predictions

CHUNK = 3
CPU = torch.device("cpu")
HEAD = ActionHeadConfig(time_horizon=CHUNK)
LENGTH = 128


def model_with_head(**changes: object) -> Transformer:
    """Far from its initial values, so that every part of it matters."""
    model = small_model(scale=1, action_head=replace(HEAD, **changes))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.action_head.named_parameters():  # pyright: ignore[reportOptionalMemberAccess]
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
            if "action_token_embeddings" in name:
                parameter.mul_(10)
    return model


def sample(seed: int, text: int, images: int) -> tuple[list[int], np.ndarray, int]:
    """Tokens of an action sample, its normalised actions [K, 7], and the length of its prompt."""
    random = np.random.default_rng(seed)
    prompt = prompt_of(seed, text, images)
    bins = random.integers(ACTION_BIN_START, ACTION_BIN_END - 1, (CHUNK, 7))
    actions = normalise(decode(bins)) + random.uniform(-0.003, 0.003, (CHUNK, 7))  # within its bin
    tokens = [*prompt, *action_blocks(bins).tolist(), END_OF_TURN]
    return tokens, actions, len(prompt)


def packed(*rows: list[tuple[int, int, int]]) -> PackedBatch:
    """Sequences of action samples (seed, text, images), one after the other, between runs of other tokens."""
    shape = (len(rows), LENGTH)
    tokens, labels = np.zeros(shape, np.int32), np.full(shape, IGNORED_LABEL, np.int32)
    positions, segments, blocks = (np.zeros(shape, np.int32) for _ in range(3))
    starts, targets = [], []
    for number, samples in enumerate(rows):
        at = 0
        for segment, (seed, text, images) in enumerate(samples, start=1):
            ids, actions, prompt = sample(seed, text, images)
            part = slice(at, at + len(ids))
            tokens[number, part], positions[number, part] = ids, np.arange(len(ids))
            segments[number, part], blocks[number, part] = segment, mask_vectors(ids)[1]
            labels[number, at + prompt - 1 : part.stop - 1] = ids[prompt:]
            starts.append(number * LENGTH + at + prompt)
            targets.append(actions)
            at = part.stop
        # A sample without actions at the end of the sequence.
        rest = slice(at, LENGTH)
        tokens[number, rest], positions[number, rest] = 9_000 + at, np.arange(LENGTH - at)
        segments[number, rest] = len(samples) + 1
        labels[number, at : LENGTH - 1] = 9_000 + at
    of_actions = np.array(targets, np.float32).reshape(len(targets), CHUNK, 7)
    present, places = np.ones(of_actions.shape, bool), np.array(starts, np.int64)
    return PackedBatch(tokens, labels, positions, segments, blocks, places, of_actions, present)


BATCH = packed([(1, 4, 1), (2, 9, 1)], [(3, 2, 2)], [])


def terms(
    model: Transformer, batch: PackedBatch, settings: LossSettings, targets: int
) -> tuple[Tensor, Tensor]:
    """(loss, sums) of a micro-batch of a step with so many continuous targets."""
    micro = MicroBatch.of(batch, model.config, settings, CPU, torch.float32)
    normaliser = torch.tensor([float(len(micro.labels)), float(len(micro.labels)), float(targets)])
    return model(
        micro.tokens,
        micro.positions,
        micro.mask,
        micro.labelled,
        micro.labels,
        normaliser,
        settings,
        micro.actions,
    )


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_outputs_and_gradients_equal_torchs_encoder_sample_by_sample(share: float) -> None:
    """Of numbers that are all present, and of those that are: 3 K x 7 targets, or fewer."""
    present = np.random.default_rng(0).random(BATCH.action_targets.shape) < share
    batch, count = replace(BATCH, action_present=present), int(present.sum())
    assert (count == 63) == (share == 1.0)
    model, settings = model_with_head(), LossSettings(z_loss=0.0, image_weight=1.0)
    twin = small_model(scale=1)
    twin.load_state_dict(model.state_dict(), strict=False)
    head = plain_head_of(model)
    loss, sums = terms(model, batch, settings, targets=count)
    loss.backward()

    predicted = torch.stack(plain_predictions(twin, head, BATCH))
    flat = torch.as_tensor(BATCH.labels).long().flatten()
    logits = twin.lm_head(hidden_states(twin, BATCH).flatten(0, 1)[flat != IGNORED_LABEL])
    tokens_loss = torch.nn.functional.cross_entropy(logits, flat[flat != IGNORED_LABEL])
    error = (predicted - torch.as_tensor(BATCH.action_targets)).abs()[torch.as_tensor(present)]
    expected = tokens_loss + 10 * error.mean()
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
    assert error.mean().item() > 0.1
    assert float(sums[LabelKind.CONTINUOUS, Total.ACTION_L1]) == pytest.approx(error.sum().item(), rel=1e-5)
    assert float(sums[LabelKind.CONTINUOUS, Total.LABELS]) == count
    micro = ActionInputs.of(BATCH, HEAD, False, CPU)
    with torch.no_grad():
        actual = model.action_head(hidden_states(model, BATCH).flatten(0, 1), micro.prompts)  # pyright: ignore[reportOptionalCall]
    torch.testing.assert_close(actual, predicted.detach(), atol=1e-6, rtol=0)
    reference = {f"action_head.{name}": p for name, p in head.named_parameters()} | dict(
        twin.named_parameters()
    )
    assert reference.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
        torch.testing.assert_close(parameter.grad, reference[name].grad, atol=1e-5, rtol=1e-5, msg=name)


def test_the_error_is_a_mean_over_the_step_and_zero_without_action_samples() -> None:
    model, settings = model_with_head(), LossSettings()
    parts = [BATCH.rows(0, 1), BATCH.rows(1, 3)]
    assert [len(part.action_starts) for part in parts] == [2, 1]
    head_only = replace(settings, z_loss=0.0, tokens_for_actions=False)
    whole = terms(model, BATCH, head_only, 63)[1]
    sums = [terms(model, part, head_only, 63)[1] for part in parts]
    torch.testing.assert_close(sums[0] + sums[1], whole, atol=1e-4, rtol=1e-6)
    assert means(whole.tolist())["action_head_l1"] == pytest.approx(
        float(whole[LabelKind.CONTINUOUS, Total.ACTION_L1]) / 63
    )

    model.zero_grad()
    none = BATCH.rows(2, 3)
    loss, sums_of_none = terms(model, none, settings, targets=1)
    plain = terms(small_model_like(model), none, settings, targets=1)[0]
    assert loss.item() == plain.item()
    assert sums_of_none[LabelKind.CONTINUOUS].tolist() == [0, 0, 0, 0]
    assert "action_head_l1" not in means(sums_of_none.tolist())
    loss.backward()
    assert model.action_head is not None
    for name, parameter in model.action_head.named_parameters():  # ZeRO-3 reduces them on every rank
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def small_model_like(model: Transformer) -> Transformer:
    """The same network without its head."""
    twin = small_model(scale=1)
    twin.load_state_dict(model.state_dict(), strict=False)
    return twin


def test_targets_are_the_actions_or_the_centres_of_their_bins() -> None:
    raw = ActionInputs.of(BATCH, HEAD, False, CPU).targets.numpy()
    centres = ActionInputs.of(BATCH, HEAD, True, CPU).targets.numpy()
    np.testing.assert_array_equal(raw, BATCH.action_targets)
    assert 0 < np.abs(raw - centres).max() <= 1 / 255
    start = int(BATCH.action_starts[1])
    bins = BATCH.tokens.reshape(-1)[start + 1 : start + 8]
    np.testing.assert_allclose(centres[1, 0], normalise(decode(bins[None]), DEFAULT_RANGES)[0], atol=1e-6)


def test_answers_of_action_samples_have_no_labels_without_tokens_for_actions() -> None:
    config = model_with_head().config
    with_tokens, without = (
        MicroBatch.of(BATCH, config, LossSettings(tokens_for_actions=flag), CPU, torch.float32)
        for flag in (True, False)
    )
    dropped = sorted(set(with_tokens.labelled.tolist()) - set(without.labelled.tolist()))
    answer = 9 * CHUNK + 1
    expected = [place for start in BATCH.action_starts for place in range(start - 1, start - 1 + answer)]
    assert dropped == expected
    assert len(without.labels) > 0


def test_one_pass_gives_the_actions_of_the_training_head() -> None:
    model = model_with_head()
    trained = torch.stack(plain_predictions(model, plain_head_of(model), BATCH)).detach().numpy()
    prompts = [sample(seed, text, images)[0] for seed, text, images in ((1, 4, 1), (2, 9, 1), (3, 2, 2))]
    prompts = [tokens[: tokens.index(ACTION_START)] for tokens in prompts]
    together = predict_actions(model, prompts)
    np.testing.assert_allclose(together, trained, atol=1e-6)
    assert together.dtype == np.float32
    wide = predict_actions(model, prompts, width=100)
    for number, prompt in enumerate(prompts):
        alone = predict_actions(model, [prompt], width=100)
        np.testing.assert_array_equal(alone[0], predict_actions(model, [prompt] * 2, width=100)[1])
        np.testing.assert_allclose(alone[0], wide[number], atol=1e-6)


def test_a_history_of_actions_in_a_prompt_is_masked_as_in_training() -> None:
    model = model_with_head()
    prompt = prompt_of(4, 3)
    history = [*prompt[:-1], *action_blocks(np.full((2, 7), ACTION_BIN_START + 9)).tolist(), *prompt[1:]]
    segments, blocks = (vector[None].astype(np.int32) for vector in mask_vectors(history))
    tokens = np.array([history], np.int32)
    positions = np.arange(len(history), dtype=np.int32)[None]
    batch = PackedBatch(tokens, tokens, positions, segments, blocks)
    hidden = hidden_states(model, batch)[0]
    expected = plain_head_of(model)(hidden).detach().numpy()
    np.testing.assert_allclose(predict_actions(model, [history])[0], expected, atol=1e-6)


def test_dropout_is_of_the_seed_and_only_in_training() -> None:
    model = model_with_head(dropout=0.5)
    hidden = hidden_states(model, BATCH).detach().flatten(0, 1)
    prompts, head = ActionInputs.of(BATCH, HEAD, False, CPU).prompts, model.action_head
    assert head is not None
    calm = head(hidden, prompts)
    head.train()
    torch.manual_seed(0)
    first = head(hidden, prompts, 7)
    torch.manual_seed(1)
    assert torch.equal(head(hidden, prompts, 7), first)
    assert not torch.equal(head(hidden, prompts, 8), first)
    assert not torch.equal(first, calm)
    head.eval()
    assert torch.equal(head(hidden, prompts, 7), calm)


def test_names_decide_decay_and_sharding() -> None:
    names = [name for name, _ in model_with_head().named_parameters() if name.startswith("action_head.")]
    assert all(sharded_dimension(name) is None for name in names)
    decayed = {name for name in names if is_matrix(name)}
    shapes = {name: tuple(p.shape) for name, p in model_with_head().named_parameters()}
    assert decayed == {name for name in names if len(shapes[name]) == 2}
    assert len(names) == 45


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": CHUNK + 1}, "model.action_head.time_horizon=3, but data.chunk=4"),
        ({"action_dim": 33}, "action_head.action_dim=33, expected 1 to 32"),
        ({"hidden_size": 40}, "model.hidden_size=40 does not divide by 16"),
        ({"dropout": 1.0}, "action_head.dropout=1.0, expected at least 0 and below 1"),
        ({"time_horizon": 0, "chunk": 0}, "time_horizon=0, expected at least 1"),
        ({"none": True}, "loss.tokens_for_actions=false, but model.action_head is null"),
        (
            {"tokens": False, "action_l1": 0},
            "loss.tokens_for_actions=false and loss.action_l1=0: nothing would",
        ),
        ({"action_l1": -1.0}, "loss.action_l1=-1.0, expected 0 or more"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(changes: dict[str, object], message: str) -> None:
    config = TrainingConfig()
    config.model = replace(config.model, **{**asdict(small_model().config), "action_head": None})
    head = {key: value for key, value in changes.items() if key in ("action_dim", "dropout", "time_horizon")}
    config.model.action_head = None if "none" in changes else replace(HEAD, **head)
    config.model.hidden_size = int(str(changes.get("hidden_size", config.model.hidden_size)))
    config.data.chunk = int(str(changes.get("chunk", CHUNK)))
    config.loss.tokens_for_actions = not {"none", "tokens"} & changes.keys()
    config.loss.action_l1 = float(str(changes.get("action_l1", 10.0)))
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        check_training(config)


def test_a_model_and_a_batch_that_do_not_fit_are_refused() -> None:
    model = model_with_head(time_horizon=2)
    with pytest.raises(InputError, match="time_horizon=2, but the data has 3 actions in the longest"):
        check_batch(BATCH, model.config)
    with pytest.raises(InputError, match=r"no continuous action head \(model.action_head is null\)"):
        predict_actions(small_model(), [[0, 9000, END_OF_TURN]])
    bins = decode_action_chunk(model, [prompt_of(1, 3)], CHUNK)  # tokens as ever
    assert bins.shape == (1, CHUNK, 7)
