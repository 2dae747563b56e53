"""The action head written out with torch's own encoder, one sample at a time (for tests)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.contracts import PackedBatch
from pretrain.model.attention.choose import packed_mask
from pretrain.model.transformer import Transformer


class PlainHead(nn.Module):
    """The published head without dropout; its parameters have the published names."""

    def __init__(self, hidden: int, horizon: int) -> None:
        super().__init__()
        width = hidden // 4
        self.horizon = horizon
        self.action_token_embeddings = nn.Embedding(1, horizon * 7 * hidden)
        self.hidden_projection = nn.Linear(hidden, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width))
        self.output_projection = nn.ModuleDict({"model": PlainMlp(width)})

    def forward(self, prompt: Tensor) -> Tensor:
        """Hidden states [P, H] of one prompt -> actions [K, 7]."""
        queries = self.action_token_embeddings(torch.tensor([0])).view(self.horizon * 7, -1)
        rows = self.hidden_projection(torch.cat([prompt, queries]))
        outputs = self.transformer_encoder(rows[None])[0, len(prompt) :]
        return self.output_projection["model"](outputs.reshape(self.horizon, -1))


class PlainMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(7 * width)
        self.fc1 = nn.Linear(7 * width, width)
        blocks = [nn.ModuleDict({"ffn": _block(width)}) for _ in range(2)]
        self.mlp_resnet_blocks = nn.ModuleList(blocks)
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["ffn"](x)
        return self.fc2(self.layer_norm2(x))


def _block(width: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())


def plain_head_of(model: Transformer) -> PlainHead:
    """The head of a model, with copies of its weights."""
    assert model.action_head is not None
    head = PlainHead(model.config.hidden_size, model.action_head.horizon)
    head.load_state_dict(model.action_head.state_dict())
    return head


def plain_predictions(model: Transformer, head: nn.Module, batch: PackedBatch) -> list[Tensor]:
    """Actions [K, 7] of every action sample of a batch, one after the other."""
    hidden = hidden_states(model, batch)
    predictions = []
    for place in batch.action_starts.tolist():
        row, column = divmod(place, batch.tokens.shape[1])
        length = int(batch.positions[row, column])
        predictions.append(head(hidden[row, column - length : column]))
    return predictions


def hidden_states(model: Transformer, batch: PackedBatch) -> Tensor:
    """Last normed hidden states [B, S, H]."""
    tokens, positions = (torch.as_tensor(a).long() for a in (batch.tokens, batch.positions))
    mask = packed_mask(batch.segments, batch.blocks, model.config, tokens.device)
    return model.model(tokens, positions, mask).view(*tokens.shape, -1)


def plain_error(model: Transformer, batch: PackedBatch) -> Tensor:
    """Mean |prediction - target| of the model's own weights, sample by sample, with torch's attention."""
    head: Any = model.action_head
    hidden, width = hidden_states(model, batch), model.config.hidden_size // 4
    predictions = []
    for place in batch.action_starts.tolist():
        row, column = divmod(place, batch.tokens.shape[1])
        prompt = hidden[row, column - int(batch.positions[row, column]) : column]
        queries = head.action_token_embeddings.weight.view(head.horizon * 7, -1)
        x = head.hidden_projection(torch.cat([prompt, queries]))
        for layer in head.transformer_encoder.layers:
            mixed, _ = F.multi_head_attention_forward(
                x,
                x,
                x,
                width,
                4,
                layer.self_attn.in_proj_weight,
                layer.self_attn.in_proj_bias,
                None,
                None,
                False,
                0.0,
                layer.self_attn.out_proj.weight,
                layer.self_attn.out_proj.bias,
                need_weights=False,
            )
            x = layer.norm1(x + mixed)
            x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
        outputs = head.transformer_encoder.norm(x[len(prompt) :])
        predictions.append(head.output_projection(outputs.reshape(head.horizon, -1)))
    return (torch.stack(predictions) - torch.as_tensor(batch.action_targets)).abs().mean()
