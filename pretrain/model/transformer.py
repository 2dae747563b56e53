"""The WorldVLA network: a Chameleon decoder over one vocabulary of text, image codes and actions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import InputError
from pretrain.model.action_head import ActionHead, check_head
from pretrain.model.action_prompts import ActionInputs
from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.host import on_device
from pretrain.model.attention.prompts import prompt_mask
from pretrain.model.cache import DecodingCache
from pretrain.model.config import ModelConfig, RecomputeChoice, RecomputePolicy
from pretrain.model.factory import LayerFactory
from pretrain.model.layers import DecoderLayer, RMSNorm, RotaryTable, Stream
from pretrain.model.loss import ActionSources, LossSettings, VocabularyHead, with_action_error
from pretrain.model.mask import effective_blocks
from pretrain.model.parameters import Shard, initial_values, sharded_dimension
from pretrain.model.recompute import run_layer


class Decoder(nn.Module):
    """Embedding, layers and final norm: token ids -> hidden states."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.embed_tokens = factory.embedding(config.vocabulary_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, factory) for _ in range(config.layers))
        self.norm = RMSNorm(config, factory)
        self._gather_tokens = factory.gather_tokens
        self._rotary = RotaryTable(config)
        self._recompute: RecomputeChoice = config.recompute
        self._recompute_layers = config.layers if config.recompute_layers is None else config.recompute_layers

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: AttentionMask, cache: DecodingCache | None = None
    ) -> Tensor:
        """Ids and positions [B, S] -> hidden states [B * S, H].

        The residual stream is a flat list of tokens, of which each rank may hold a share (see `factory`).
        """
        embedded = self.embed_tokens(tokens.flatten())
        rotary = self._rotary.at(positions, embedded.dtype)
        stream: Stream = (embedded,)
        for number, layer in enumerate(self.layers):
            if cache is not None:
                stream = layer(stream, rotary, mask, cache.layers[number])
            else:
                policy = self._policy(number)
                stream = run_layer(policy, partial(layer, whole=policy == "full"), stream, rotary, mask)
        return self._gather_tokens(self.norm(*stream)[1])

    def prefill(self, tokens: Tensor, positions: Tensor, mask: AttentionMask, cache: DecodingCache) -> None:
        """Append keys and values of prompts [B, S] to the cache; the last layer's output is not computed."""
        embedded = self.embed_tokens(tokens.flatten())
        rotary = self._rotary.at(positions, embedded.dtype)
        stream: Stream = (embedded,)
        for number, layer in enumerate(self.layers[:-1]):
            stream = layer(stream, rotary, mask, cache.layers[number])
        last = self.layers[-1]
        assert isinstance(last, DecoderLayer)
        last.prefill(stream, rotary, cache.layers[-1])

    def _policy(self, number: int) -> RecomputePolicy:
        """Recompute policy of a layer; `none` outside training, where `auto` may stand."""
        if not self.training or number >= self._recompute_layers:
            return "none"
        if self._recompute == "auto":
            raise RuntimeError("model.recompute=auto reached the network; pretrain.auto_settings resolves it")
        return self._recompute


class Transformer(nn.Module):
    """The whole network. Parameter names are those of Hugging Face's Chameleon, and `action_head.*`.

    Args:
        config: Size and shape.
        factory: Builds the layers; the default holds whole matrices on one rank.

    Raises:
        InputError: Sizes that do not divide by the heads or by the factory's ranks.
    """

    def __init__(self, config: ModelConfig, factory: LayerFactory | None = None) -> None:
        super().__init__()
        factory = factory or LayerFactory()
        check_divides(config, factory.size)
        self.config = config
        self.model = Decoder(config, factory)
        self.lm_head = VocabularyHead(factory, config.vocabulary_size, config.hidden_size)
        self.action_head = ActionHead(config) if config.action_head is not None else None

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: AttentionMask,
        labelled: Tensor | None = None,
        labels: Tensor | None = None,
        normaliser: Tensor | None = None,
        settings: LossSettings | None = None,
        actions: ActionInputs | None = None,
        sources: ActionSources | None = None,
    ) -> Any:
        """Logits of packed sequences, or their loss.

        Args:
            tokens: int64 [B, S], as in `data.contracts.PackedBatch`.
            positions: int64 [B, S], of each token within its sample.
            mask: From `pretrain.model.attention.choose.packed_mask`.
            labelled: int64 [N], indices into the flattened B * S positions that have a label.
            labels: int64 [N], those labels.
            normaliser: fp32 [3], sum of the label weights, number of labels and number of the action head's
                targets of the whole step; [2] suffices without `actions`.
            settings: Weights of the loss.
            actions: Prompts and targets of the action head; None: its loss is left out.
            sources: Data sets of the action labels; None: the sums do not tell them apart.

        Returns:
            Logits [B, S, V] (this rank's share of V), or with labels the pair (loss, sums) of
            `LossTerms`.

        Raises:
            ValueError: `actions` without labels, or without an action head.
        """
        if actions is not None and (self.action_head is None or labelled is None):
            raise ValueError("inputs of the action head need labels and a model with model.action_head")
        hidden = self.model(tokens, positions, mask)
        if labelled is None:
            return self.lm_head(hidden.view(*tokens.shape, -1))
        terms = self.lm_head(hidden[labelled], labels, normaliser, settings, sources)
        if actions is None or self.action_head is None:
            return terms
        predicted = self.action_head(hidden, actions.prompts, actions.dropout_seed)
        return with_action_error(terms, predicted, actions, normaliser, settings)

    def prefill(self, tokens: Tensor, segments: Tensor, blocks: Tensor, cache: DecodingCache) -> None:
        """Fill a cache with prompts; what it held before is forgotten.

        Args:
            tokens: int64 [B, S], on the host, one prompt a row, padded on the right.
            segments: Segment ids int64 [B, S], on the host: 1, and 0 for padding.
            blocks: Block ids int64 [B, S], on the host.
            cache: Of the same batch.
        """
        weight = self.lm_head.weight
        mask = prompt_mask(segments, blocks, self.config, weight.device, weight.dtype)
        blocks = effective_blocks(blocks, self.config.action_mask, self.config.history_actions_visible)
        cache.begin(on_device(segments, weight.device), on_device(blocks, weight.device))
        positions = torch.arange(tokens.shape[1], device=weight.device).expand(tokens.shape)
        self.model.prefill(on_device(tokens, weight.device), positions, mask, cache)

    def decode(
        self,
        tokens: Tensor,
        positions: Tensor,
        blocks: Tensor,
        slots: Tensor,
        cache: DecodingCache,
        end: int | None = None,
    ) -> Tensor:
        """Hidden states [B, Q, H] of new tokens after those in earlier slots of the cache.

        The host decides nothing here that depends on the tokens: the call can be captured as a CUDA graph.

        Args:
            tokens: int64 [B, Q].
            positions: int64 [B, Q].
            blocks: Block ids int64 [B, Q].
            slots: int64 [Q], as in `DecodingCache.extend`.
            cache: Of the same batch.
            end: As in `DecodingCache.extend`.
        """
        blocks = effective_blocks(blocks, self.config.action_mask, self.config.history_actions_visible)
        hidden = self.model(tokens, positions, cache.extend(slots, blocks, end), cache)
        return hidden.view(*tokens.shape, -1)


def check_divides(config: ModelConfig, tensor: int) -> None:
    """Check that heads, widths and vocabulary divide by the heads and by `tensor` ranks.

    Raises:
        InputError: One does not, or as `check_head`; names the setting.
    """
    check_head(config)
    if config.hidden_size % config.heads or config.head_size % 2:
        raise InputError(
            f"model.hidden_size={config.hidden_size} over model.heads={config.heads}: expected an even whole "
            "head size; change one of them"
        )
    if config.heads % config.shared_heads:
        raise InputError(
            f"model.heads={config.heads} does not divide by model.key_value_heads={config.shared_heads}: "
            "expected as many query heads for each key/value head; change one of them"
        )
    for name in ("heads", "key_value_heads", "ffn_size", "vocabulary_size"):
        value = getattr(config, name)
        if value is not None and value % tensor:
            raise InputError(
                f"model.{name}={value} does not divide by parallel.tensor={tensor}; choose another "
                "tensor-parallel size"
            )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and global shape of every parameter of the network."""
    with torch.device("meta"):
        network = Transformer(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@torch.no_grad()
def initialise(model: Transformer, seed: int, rank: int = 0, size: int = 1) -> None:
    """Random initial weights that depend on seed and parameter name alone, not on the layout.

    Args:
        model: Freshly built, not yet partitioned by ZeRO.
        seed: Of the random values.
        rank: Tensor-parallel rank.
        size: Tensor-parallel size.
    """
    for name, parameter in model.named_parameters():
        shard = Shard(tuple(parameter.shape), sharded_dimension(name), rank, size)
        parameter.copy_(initial_values(name, shard, model.config, seed).view(shard.shape))
